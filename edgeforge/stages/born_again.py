"""Born-again networks: generations of students, each taught by the one before (Furlanello et al., 2018)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.core.kinds import OneOf
from edgeforge.core.seeds import derive
from edgeforge.core.stage import Job, Progress, Stage
from edgeforge.core.task import Batch, Task, TaskData
from edgeforge.losses import Loss
from edgeforge.losses.hard_labels import HardLabels
from edgeforge.losses.soft_targets import SoftTargets
from edgeforge.store import CHECKPOINT
from edgeforge.students import Student
from edgeforge.teachers import TEACHER
from edgeforge.training.mixture import open_mixed
from edgeforge.training.recipe import (
    MODULES,
    NOT_IDENTITY,
    Recipe,
    check_fits,
    check_losses,
    needs_teacher,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

FINISHED = "finished"
"""Where a generation lies that is done, beside its checkpoint."""


class BornAgain(Stage, Recipe):
    """Students of the chain model's own shape, one after the other, each from fresh weights (arXiv:1805.04770).

    The first is taught by the chain's model, every other by the one before, all by the same recipe: the model grows
    better without growing larger. `steps` and `epochs` are those of one generation. The mean of all generations'
    probabilities is better still in the paper: it is validated, and what an `ensemble` teacher can hand on, but only
    one generation goes on as the chain's model.

    Facts: `generations` (for each its `steps`, `history` and, on the validation split, the headline metric), `teacher`
    and `ensemble` (the same metric of the chain's model and of the generations together), and `kept_generation`,
    counted from 1.
    """

    kind: Literal["born_again"] = "born_again"
    generations: int = Field(default=2, ge=1, description="How many students.")
    student: Annotated[Student, OneOf("edgeforge.students")] | None = Field(
        default=None,
        description="Another shape for all of them; its weights are fresh in any case. Absent: the chain model's own.",
    )
    losses: tuple[Annotated[Loss, OneOf("edgeforge.losses")], ...] = Field(
        default=(SoftTargets(temperature=1, weight=0.5), HardLabels(weight=0.5)),
        min_length=1,
        description="What is minimised: their weighted sum.",
    )
    goes_on: Literal["best", "last"] = Field(
        default="best", description="The generation that is kept: the one with the best validation metric, or the last."
    )

    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers", "accelerate")
    uses: ClassVar[tuple[str, ...]] = (
        *MODULES,
        "edgeforge.models.surgery",
        "edgeforge.stages._new_weights",
        "edgeforge.teachers._mean",
        "edgeforge.teachers.model",
    )
    distributed: ClassVar[bool] = True

    def identity(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude=NOT_IDENTITY)

    def sources(self) -> Mapping[str, Any]:
        return {TEACHER: None, **self.written()}

    def check(self) -> None:
        check_losses(self.losses)
        if not needs_teacher(self.losses):
            raise IncompatiblePlanError(
                "each generation is taught by the one before, but no loss asks for a teacher",
                where="losses",
                remedy="add e.g. `- soft_targets`",
            )
        if self.lora is not None:
            raise IncompatiblePlanError(
                "every generation begins with fresh weights, to which adapters add next to nothing",
                where="lora",
                remedy="leave `lora` out",
            )

    def work(self, train_size: int) -> int:
        return self.generations * self.total_steps(train_size) * self.batch_size

    def rehearse(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        shape = model if self.student is None else self.student.build(model, task, task.open().interface)
        check_fits(self, shape, task)
        return shape

    def run(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        import torch

        from edgeforge.models import loading
        from edgeforge.models.footprint import footprint

        data = open_mixed(job.task, self.mix, inputs, reader=TEACHER)
        first = loading.load(inputs[TEACHER].path)
        torch.manual_seed(derive(job.seed, "student"))
        shape = first if self.student is None else self.student.build(first, job.task, data.interface)
        line = _Line(self, shape, data, job)
        found = line.raise_all(first)
        kept = line.chosen(found)
        if job.accelerator.is_main_process:
            loading.save(found[kept].model, job.folder, tokenizer_from=inputs[TEACHER].path)
        return {
            **footprint(found[kept].model, data.interface),
            **found[kept].facts,
            "teacher": line.metric([first]),
            "generations": [{**one.facts, **one.validation} for one in found],
            "ensemble": line.metric([one.model for one in found]),
            "kept_generation": kept + 1,
        }


@dataclass(frozen=True)
class _Generation:
    """A student that is done, on the CPU; `validation` holds the headline metric by its name."""

    model: PreTrainedModel
    facts: dict[str, Any]
    validation: dict[str, float]


class _Line:
    """The generations of one stage."""

    def __init__(self, stage: BornAgain, shape: PreTrainedModel, data: TaskData, job: Job) -> None:
        self.stage, self.shape, self.data, self.job = stage, shape, data, job

    def raise_all(self, teacher: PreTrainedModel) -> list[_Generation]:
        """Train what is not trained yet, and validate every generation."""
        found: list[_Generation] = []
        for number in range(self.stage.generations):
            model, facts = self._generation(number, teacher)
            found.append(_Generation(model, facts, self.metric([model])))
            teacher = model
        return found

    def metric(self, models: Sequence[PreTrainedModel]) -> dict[str, float]:
        """The headline metric of the mean of these models' probabilities on the validation split, by name."""
        from edgeforge.training.validation import validated

        device = self.job.accelerator.device
        try:
            answer = _together([model.to(device).eval() for model in models])
            name, value = validated(answer, task=self.job.task, data=self.data, device=device)
        finally:
            for model in models:
                model.to("cpu")
        return {name: value}

    def chosen(self, found: Sequence[_Generation]) -> int:
        """The position of the generation that goes on; of equally good ones the last."""
        from edgeforge.training.validation import score

        if self.stage.goes_on == "last":
            return len(found) - 1
        return max(range(len(found)), key=lambda at: (score(*next(iter(found[at].validation.items()))), at))

    def _generation(self, number: int, teacher: PreTrainedModel) -> tuple[PreTrainedModel, dict[str, Any]]:
        """A student of this teacher, and the facts of its training; read back where it was finished before."""
        import torch

        from edgeforge.stages._new_weights import with_new_weights
        from edgeforge.training import checkpoint

        folder = self.job.folder / CHECKPOINT / f"generation-{number + 1}"
        # Generations that began alike, and saw the samples in the same order, would make a poor ensemble.
        seed = derive(self.job.seed, "generation", number) % 2**31
        torch.manual_seed(derive(seed, "student"))
        student = with_new_weights(self.shape)
        finished = checkpoint.latest(folder / FINISHED)
        if finished is not None:
            student.load_state_dict(checkpoint.read(finished, "student"))
            return student, dict(checkpoint.read_state(finished))
        progress = _Part(self.job.progress, number, self.stage.generations)
        facts = self._taught(student, teacher, replace(self.job, folder=folder, seed=seed, progress=progress))
        if self.job.accelerator.is_main_process:
            checkpoint.save(folder / FINISHED, facts["steps"], {"student": student.state_dict()}, facts)
            shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
        return student, facts

    def _taught(self, student: PreTrainedModel, teacher: PreTrainedModel, job: Job) -> dict[str, Any]:
        from edgeforge.teachers.model import answering
        from edgeforge.training.loop import fit
        from edgeforge.training.objective import Trainee

        try:
            asked = answering(teacher.to(job.accelerator.device), _as_it_is, self.data.interface)
            trainee = Trainee(student, self.stage.losses, asked)
            return fit(trainee, self.stage, data=self.data, job=job, split="transfer")
        finally:
            teacher.to("cpu")


@dataclass(frozen=True)
class _Part:
    """The progress of one generation, as a part of the whole stage's."""

    whole: Progress
    number: int
    of: int

    def update(self, done: int, total: int, note: str = "") -> None:
        self.whole.update(self.number * total + done, self.of * total, f"generation {self.number + 1}, {note}")

    def warn(self, message: str) -> None:
        self.whole.warn(f"generation {self.number + 1}: {message}")


def _as_it_is(batch: Batch) -> Batch:
    """All generations read what the chain's model reads."""
    return batch


def _together(models: Sequence[PreTrainedModel]) -> Callable[[Batch], torch.Tensor]:
    """Model inputs -> the logits of the mean of the models' probabilities."""
    from edgeforge.teachers._mean import mean_as_logits

    shares = [1 / len(models)] * len(models)
    return lambda inputs: mean_as_logits((model(**inputs).logits for model in models), shares)
