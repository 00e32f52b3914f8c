"""Deep mutual learning: students that teach each other (Zhang, Xiang, Hospedales and Lu, 2018, arXiv:1706.00384)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.core.kinds import OneOf
from edgeforge.core.seeds import derive
from edgeforge.core.stage import Job, Stage
from edgeforge.core.task import Interface, Task
from edgeforge.losses import Loss
from edgeforge.losses.hard_labels import HardLabels
from edgeforge.losses.soft_targets import SoftTargets
from edgeforge.students import Student
from edgeforge.students.width import Width
from edgeforge.training.mixture import open_mixed
from edgeforge.training.recipe import MODULES, NOT_IDENTITY, Recipe, check_fits, check_losses

if TYPE_CHECKING:
    from typing import Self

    from transformers import PreTrainedModel


class Mutual(Stage, Recipe):
    """Train several students at once, each on the labels and on what the others answer; no teacher is needed.

    With the default losses student k minimises cross entropy + the mean over the others l of KL(p_l || p_k), which is
    the paper's loss (arXiv:1706.00384); `{kind: soft_targets, temperature: 2}` softens both sides. All see the same
    batches and are updated at once, from the answers of the same step; no gradient flows into an answer that
    teaches. (The paper's Algorithm 1 updates one after the other.)

    Students may be of any shape, and they must differ: in shape, or in their fresh weights, which each draws for
    itself. A student `copy` is the chain's model with the weights it has: a teacher that goes on learning from those
    it teaches. For images, texts and language models. Training takes the time and memory of all students together,
    inference those of the one that goes on. What follows in the chain is tried with the first student's shape before
    any work.
    """

    kind: Literal["mutual"] = "mutual"
    students: tuple[Annotated[Student, OneOf("edgeforge.students")], ...] = Field(
        default=(Width(multiple=0.5), Width(multiple=0.5)),
        description="Two or more; each is made from the chain's model as `distill` makes its one.",
    )
    losses: tuple[Annotated[Loss, OneOf("edgeforge.losses")], ...] = Field(
        default=(HardLabels(), SoftTargets(temperature=1.0)),
        min_length=1,
        description="What each student minimises: their weighted sum. One that needs a teacher is averaged over the "
        "other students.",
    )
    use: Literal["best", "first"] = Field(
        default="best", description="Which student goes on: the best by the validation metric, or the first."
    )

    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers", "accelerate")
    uses: ClassVar[tuple[str, ...]] = (*MODULES, "edgeforge.training.peers")
    distributed: ClassVar[bool] = True

    @model_validator(mode="after")
    def _a_cohort(self) -> Self:
        if len(self.students) < 2:
            raise ValueError("students teach each other: name two or more")
        return self

    def identity(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude=NOT_IDENTITY)

    def sources(self) -> Mapping[str, Any]:
        return self.written()

    def check(self) -> None:
        check_losses(self.losses)
        deeper = [loss.kind for loss in self.losses if loss.outputs]
        if deeper:
            raise IncompatiblePlanError(
                f"`{deeper[0]}` reads layers, and students teach each other by their answers",
                where="losses",
                remedy="use losses on logits such as `soft_targets`, or `distill`, whose teacher stays as it is",
            )
        if not any(loss.needs_teacher and loss.weight > 0 for loss in self.losses):
            raise IncompatiblePlanError(
                "the students would learn each for itself: no loss asks for what the others answer",
                where="losses",
                remedy="add e.g. `- soft_targets`, or use `train`",
            )
        if self.lora is not None:
            raise IncompatiblePlanError(
                "adapters change one model's weights, and here are several models, most of them new",
                where="lora",
                remedy="leave `lora` out",
            )

    def work(self, train_size: int) -> int:
        return self.total_steps(train_size) * self.batch_size * len(self.students)

    def rehearse(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        members = self._members(model, task, task.open().interface, seed=0)
        check_fits(self, members[0], task)
        return members[0]

    def run(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        from edgeforge.models import loading
        from edgeforge.models.footprint import footprint
        from edgeforge.training.loop import fit
        from edgeforge.training.peers import Cohort, Peers
        from edgeforge.training.validation import model_validated, score

        model = loading.load(inputs["model"].path)
        data = open_mixed(job.task, self.mix, inputs, reader="model")
        members = self._members(model, job.task, data.interface, seed=job.seed)

        def judged() -> list[tuple[str, float]]:
            device = job.accelerator.device
            return [model_validated(member, task=job.task, data=job.data, device=device) for member in members]

        before, everyone = judged(), range(len(members))
        others = [[other for other in everyone if other != member] for member in everyone]
        chosen = everyone if self.use == "best" else [0]
        trainee = Peers(Cohort(members), self.losses, teachers=others, chosen=chosen)
        facts = fit(trainee, self, data=data, job=job, split="transfer")
        after = judged()
        used = max(chosen, key=lambda member: score(*after[member]))
        if job.accelerator.is_main_process:
            loading.save(members[used], job.folder, tokenizer_from=inputs["model"].path)
        sizes = [footprint(member, data.interface) for member in members]
        rows = [
            {"student": student.kind, "metric": name, "before": start, "after": end, **size}
            for student, (name, start), (_, end), size in zip(self.students, before, after, sizes, strict=True)
        ]
        return {**sizes[used], **facts, "members": rows, "used": used}

    def _members(
        self, model: PreTrainedModel, task: Task, interface: Interface, *, seed: int
    ) -> Sequence[PreTrainedModel]:
        """The students before training. Raises ModelError, IncompatiblePlanError."""
        import torch

        members = []
        for position, student in enumerate(self.students):
            torch.manual_seed(derive(seed, "student", position))
            members.append(student.build(model, task, interface))
        for position, member in enumerate(members):
            same = [other for other in range(position) if _alike(members[other], member)]
            if same:
                raise IncompatiblePlanError(
                    f"students {same[0]} and {position} begin with the same weights and see the same batches, so that "
                    "neither has anything to teach the other",
                    where="students",
                    remedy="give one of them another shape, or fresh weights (`{kind: width, multiple: 1}`)",
                )
        return members


def _alike(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    import torch

    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
