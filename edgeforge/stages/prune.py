"""Pruning: remove what matters least; `recover` trains what is left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from edgeforge.core.artifact import Artifact
from edgeforge.core.kinds import OneOf
from edgeforge.core.stage import Job, Stage
from edgeforge.core.task import Task
from edgeforge.criteria import Criterion
from edgeforge.criteria.random import Random
from edgeforge.structures import Structure
from edgeforge.training.recipe import Recovery

if TYPE_CHECKING:
    from typing import Self

    from accelerate import Accelerator
    from transformers import PreTrainedModel


class Prune(Stage):
    """Remove structure that a criterion finds unimportant. Nothing is trained; `recover` becomes a step of its own."""

    kind: Literal["prune"] = "prune"
    structure: Annotated[Structure, OneOf("edgeforge.structures")] = Field(description="What is removed.")
    criterion: Annotated[Criterion, OneOf("edgeforge.criteria")] | None = Field(
        default=None,
        description="How it is judged what matters; absent: `magnitude`, for layers `drop_loss`, for vocabulary none.",
    )
    recover: Recovery | None = Field(
        default=None, description="Training afterwards; absent: none, which costs much accuracy beyond small ratios."
    )

    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers", "torch-pruning")
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.models.loading",)

    @model_validator(mode="after")
    def _usual_criterion(self) -> Self:
        if self.criterion is None:
            # The spec must name it: it is part of the step's key.
            object.__setattr__(self, "criterion", self.structure.usual_criterion())
        return self

    def check(self) -> None:
        self.structure.check(self.criterion)

    def identity(self) -> dict[str, Any]:
        # Recovery is another step: changing it must not prune again.
        return self.model_dump(mode="json", exclude={"name", "recover"})

    def rehearse(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        if self.criterion is not None:
            self.criterion.check(model)
        job = Job(task, Path(), 0, _no_accelerator, _Silent())
        self.structure.prune(model, Random(), job)
        return model

    def run(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        from edgeforge.models import loading
        from edgeforge.models.footprint import footprint

        model = loading.load(inputs["model"].path)
        if self.criterion is not None:
            self.criterion.check(model)
        # A structure that asks no criterion is given one that needs nothing.
        removed = self.structure.prune(model, self.criterion or Random(), job)
        loading.save(model, job.folder, tokenizer_from=inputs["model"].path)
        return {**footprint(model, job.data.interface), "removed": removed}


class _Silent:
    """Progress of a rehearsal: what it would warn of is said when the work is done."""

    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        pass


def _no_accelerator() -> Accelerator:
    raise RuntimeError("a rehearsal computes nothing that needs a device")
