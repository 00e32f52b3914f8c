"""The model as the user gave it: new weights from a config, or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from edgeforge.core.artifact import Artifact
from edgeforge.core.kinds import OneOf
from edgeforge.core.seeds import derive
from edgeforge.core.stage import Job, Stage
from edgeforge.models import Model


class Initialize(Stage):
    """Build or read a model and write it as the first torch artifact of a chain."""

    kind: Literal["initialize"] = "initialize"
    model: Annotated[Model, OneOf("edgeforge.models")] = Field(description="Where the model comes from.")

    accepts: ClassVar[frozenset[str]] = frozenset()
    in_chain: ClassVar[bool] = False
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.models.loading",)

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind, "model": self.model.digest()}

    def run(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        import torch

        from edgeforge.models import loading
        from edgeforge.models.footprint import footprint

        torch.manual_seed(derive(job.seed, "weights"))
        folder = self.model.folder()
        data = job.task.open(folder)
        model = self.model.build(job.task, data.interface)
        loading.save(model, job.folder, tokenizer_from=folder)
        data.write_reader(job.folder)
        return footprint(model, data.interface)
