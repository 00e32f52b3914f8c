"""Training that goes on from a model's weights, on any sum of losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.core.stage import Job, Stage
from edgeforge.core.task import Task
from edgeforge.training.mixture import open_mixed
from edgeforge.training.recipe import (
    MODULES,
    NOT_IDENTITY,
    Recovery,
    check_fits,
    check_losses,
    check_teacher,
    default_teacher,
    needs_teacher,
    split_of,
    teacher_identity,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Finetune(Stage, Recovery):
    """Train the chain's model further. A prune stage's `recover` becomes one of these."""

    kind: Literal["finetune"] = "finetune"

    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers", "accelerate")
    uses: ClassVar[tuple[str, ...]] = MODULES
    distributed: ClassVar[bool] = True

    def identity(self) -> dict[str, Any]:
        # What the teacher reads is among the inputs, whose keys stand beside this.
        said = self.model_dump(mode="json", exclude={**NOT_IDENTITY, "teacher": True})
        return {**said, **teacher_identity(self.teacher)}

    def sources(self) -> Mapping[str, Any]:
        if not needs_teacher(self.losses):
            return self.written()
        return {**(self.teacher or default_teacher()).sources(), **self.written()}

    def check(self) -> None:
        check_losses(self.losses)
        check_teacher(self, self.teacher, self.losses, self.on_policy)
        if self.transfer is not None:
            self.transfer.check(self.losses)
        if self.teacher is not None and not needs_teacher(self.losses):
            raise IncompatiblePlanError(
                "a teacher is named, but no loss asks for one", remedy="add e.g. `- soft_targets` to `losses`"
            )

    def work(self, train_size: int) -> int:
        return self.total_steps(train_size) * self.batch_size

    def rehearse(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        if self.teacher is not None and needs_teacher(self.losses):
            self.teacher.check_data(task.open())
        check_fits(self, model, task)
        return model

    def run(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        from edgeforge.models import loading
        from edgeforge.models.footprint import footprint
        from edgeforge.training.loop import fit
        from edgeforge.training.objective import Trainee

        model = loading.load(inputs["model"].path)
        data, teacher = open_mixed(job.task, self.mix, inputs, reader="model"), None
        if needs_teacher(self.losses):
            teacher = (self.teacher or default_teacher()).open(inputs, job.accelerator.device, data)
        split = split_of(self.losses)
        rows = self.transfer.rows(data, split) if self.transfer is not None else None
        facts = fit(Trainee(model, self.losses, teacher), self, data=data, job=job, split=split, rows=rows)
        if self.transfer is not None and rows is not None:
            facts |= self.transfer.facts(model, data, job, taught=len(rows), of=data.size(split))
        if job.accelerator.is_main_process:
            loading.save(model, job.folder, tokenizer_from=inputs["model"].path)
        return {**footprint(model, data.interface), **facts}
