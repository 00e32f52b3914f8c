"""Supervised training on labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgeforge.core.artifact import Artifact
from edgeforge.core.seeds import derive
from edgeforge.core.stage import Job, Stage
from edgeforge.losses.hard_labels import HardLabels
from edgeforge.training.mixture import open_mixed
from edgeforge.training.recipe import MODULES, NOT_IDENTITY, Recipe, check_fits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgeforge.core.task import Task


class Train(Stage, Recipe):
    """Train the chain's model on labels. Leading `train` stages make the baseline all else is compared with."""

    kind: Literal["train"] = "train"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Share of each label spread over all classes.")

    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers", "accelerate")
    uses: ClassVar[tuple[str, ...]] = MODULES
    distributed: ClassVar[bool] = True

    def identity(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude=NOT_IDENTITY)

    def sources(self) -> Mapping[str, Any]:
        return self.written()

    def rehearse(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        check_fits(self, model, task)
        return model

    def work(self, train_size: int) -> int:
        return self.total_steps(train_size) * self.batch_size

    def run(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        import torch

        from edgeforge.models import loading
        from edgeforge.models.footprint import footprint
        from edgeforge.training.loop import fit
        from edgeforge.training.objective import Trainee

        torch.manual_seed(derive(job.seed, self.kind))
        model = loading.load(inputs["model"].path)
        data = open_mixed(job.task, self.mix, inputs, reader="model")
        losses = [HardLabels(label_smoothing=self.label_smoothing)]
        facts = fit(Trainee(model, losses, None), self, data=data, job=job)
        if job.accelerator.is_main_process:
            loading.save(model, job.folder, tokenizer_from=inputs["model"].path)
        return {**footprint(model, data.interface), **facts}
