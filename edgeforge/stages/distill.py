"""Distillation: a student learns from a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.core.kinds import OneOf
from edgeforge.core.seeds import derive
from edgeforge.core.stage import Job, Stage
from edgeforge.core.task import Task
from edgeforge.losses import Loss
from edgeforge.losses.hard_labels import HardLabels
from edgeforge.losses.soft_targets import SoftTargets
from edgeforge.students import Student
from edgeforge.students.width import Width
from edgeforge.teachers import TEACHER, Teacher
from edgeforge.training.mixture import open_mixed
from edgeforge.training.on_policy import OnPolicy
from edgeforge.training.recipe import (
    MODULES,
    NOT_IDENTITY,
    Recipe,
    check_fits,
    check_losses,
    check_teacher,
    default_teacher,
    needs_teacher,
    split_of,
    teacher_identity,
)
from edgeforge.training.transfer import Transfer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Distill(Stage, Recipe):
    """Make a student and teach it; the student goes on as the chain's model (Hinton et al., 2015).

    The teacher is the chain's model so far, or any model named, and the student is made from it; where it is no
    single model, from the chain's.

    Which kind to use: where the teacher's logits can be read, and labels or tokenizer are the same, `soft_targets`;
    where the student is of the same family too, also `hidden_states` or a loss on attention. Where the teacher has
    another tokenizer, only writes, or is a server or an API, let it write (`generate`) and `finetune` on that; a known
    procedure writes as `teacher: program`. Of a classifier that cannot run here a file of its answers: `teacher: file`.
    Several good models: `teacher: ensemble`. A teacher many times as large: an assistant between the two, which is one
    more `distill`. No teacher: the stages `mutual`, `born_again` and `exits`, or `teacher: ema`. Labels are needed for
    `hard_labels` and `decoupled` only: samples without one teach as well. More students than one of the same teacher:
    `teacher: cached`, with `views` where images are augmented. Some of the samples only, as general texts before the
    task's, or all but a class: `transfer`. docs/distillation.md has each in a few lines of YAML.
    """

    kind: Literal["distill"] = "distill"
    student: Annotated[Student, OneOf("edgeforge.students")] = Field(
        default=Width(multiple=0.5), description="Where the student comes from."
    )
    losses: tuple[Annotated[Loss, OneOf("edgeforge.losses")], ...] = Field(
        default=(SoftTargets(weight=0.9), HardLabels(weight=0.1)),
        min_length=1,
        description="What is minimised: their weighted sum.",
    )
    teacher: Annotated[Teacher, OneOf("edgeforge.teachers")] = Field(
        default=default_teacher(), description="Who teaches."
    )
    on_policy: OnPolicy | None = Field(
        default=None, description="Teach on texts that the student writes, too (language models); absent: no."
    )
    transfer: Transfer | None = Field(default=None, description="Teach on some of the samples; absent: on all.")

    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers", "accelerate")
    uses: ClassVar[tuple[str, ...]] = MODULES
    distributed: ClassVar[bool] = True

    def identity(self) -> dict[str, Any]:
        said = self.model_dump(mode="json", exclude={**NOT_IDENTITY, "teacher": True})
        return {**said, **teacher_identity(self.teacher)}

    def sources(self) -> Mapping[str, Any]:
        return {**self.teacher.sources(), **self.written()}

    def check(self) -> None:
        check_losses(self.losses)
        check_teacher(self, self.teacher, self.losses, self.on_policy)
        if self.transfer is not None:
            self.transfer.check(self.losses)
        if TEACHER not in self.teacher.sources() and not needs_teacher(self.losses):
            raise IncompatiblePlanError(
                "a teacher is named, but no loss asks for one", remedy="add e.g. `- soft_targets` to `losses`"
            )

    def work(self, train_size: int) -> int:
        return self.total_steps(train_size) * self.batch_size

    def rehearse(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        data = task.open()
        if needs_teacher(self.losses):
            self.teacher.check_data(data)
        student = self.student.build(model, task, data.interface)
        check_fits(self, student, task)
        return student

    def run(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        import torch

        from edgeforge.models import loading
        from edgeforge.models.footprint import footprint
        from edgeforge.training.loop import fit
        from edgeforge.training.objective import Trainee

        origin = TEACHER if TEACHER in inputs else "model"
        original = loading.load(inputs[origin].path)
        data = open_mixed(job.task, self.mix, inputs, reader=origin)
        interface = data.interface
        torch.manual_seed(derive(job.seed, "student"))
        student = self.student.build(original, job.task, interface)
        teacher, split = None, split_of(self.losses)
        if needs_teacher(self.losses):
            teacher = self.teacher.open(inputs, job.accelerator.device, data)
        rows = self.transfer.rows(data, split) if self.transfer is not None else None
        facts = fit(Trainee(student, self.losses, teacher), self, data=data, job=job, split=split, rows=rows)
        if self.transfer is not None and rows is not None:
            facts |= self.transfer.facts(student, data, job, taught=len(rows), of=data.size(split))
        if job.accelerator.is_main_process:
            loading.save(student, job.folder, tokenizer_from=inputs[origin].path)
        return {**footprint(student, interface), **facts}
