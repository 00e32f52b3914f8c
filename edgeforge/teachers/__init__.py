"""Where a student's signal comes from: one file per kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.core.spec import Spec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

    from edgeforge.core.task import Batch, Task, TaskData
    from edgeforge.losses import Loss
    from edgeforge.models import Model

TEACHER = "teacher"
"""The input of a stage that holds the model that teaches; of several, this is how their roles begin."""
LOGITS = "logits"
"""The same for answers of it that were kept."""


@dataclass(frozen=True)
class Request:
    """What a stage asks of its teacher.

    `cycles` is how often the stage's schedule runs, `on_policy` whether the student writes what it is taught on.
    """

    losses: tuple[Loss, ...]
    cycles: int = 1
    on_policy: bool = False


class Teacher(Spec):
    """Base of every teacher."""

    kind: str
    why_logits_only: ClassVar[str | None] = None
    """Why it cannot answer for more than logits; None where it can."""

    def sources(self) -> Mapping[str, str | Model | None]:
        """The artifacts it reads, by role: a stage's name, a model of its own, or None for the chain's model.

        A student may be made from the one that is called `TEACHER`.
        """
        raise NotImplementedError

    def asked(self) -> Mapping[str, Teacher]:
        """Who answers, by the role of what it reads: itself, unless it is made of others."""
        return dict.fromkeys(self.sources(), self)

    def identity(self) -> dict[str, Any]:
        """What decides its answers beside what it reads, as plain JSON: part of a step's key."""
        return {}

    def keeps(self) -> int | None:
        """How many of its likeliest answers it gives, beside the sum of all others; None: it gives all."""
        return None

    def kept_views(self) -> int | None:
        """How many augmented views of a sample it has answers about, which are all a student may see; None: any."""
        return None

    def recorded(self) -> bool:
        """Whether it answered before training, and so not about samples that come about in it."""
        return False

    def check(self, request: Request) -> None:
        """Refuse, from the specs alone, what it cannot teach. Raises IncompatiblePlanError."""
        deeper = [loss.kind for loss in request.losses if loss.needs_teacher and loss.outputs]
        if self.why_logits_only is not None and deeper:
            raise IncompatiblePlanError(
                f"`{deeper[0]}` reads the teacher's layers, and {self.why_logits_only}",
                where="teacher",
                remedy="use `teacher: model` in this stage, or losses on logits such as `soft_targets`",
            )

    def check_task(self, task: Task, where: str) -> None:
        """Refuse, from the specs alone, a task about whose samples it has no answers. Raises IncompatiblePlanError."""

    def check_data(self, data: TaskData) -> None:
        """Refuse data that it cannot answer about, before any work. Raises IncompatiblePlanError, ModelError."""

    def open(self, inputs: Mapping[str, Artifact], device: torch.device, data: TaskData) -> OpenTeacher:
        """Ready to answer batches of `data`, the student's. `inputs` are a stage's, by role.

        Raises ModelError where it cannot read them.
        """
        raise NotImplementedError


class OpenTeacher:
    """A teacher that answers batches, without gradients.

    One that is made of the student itself follows it, too; others have nothing to do there.
    """

    @property
    def teaches(self) -> bool:
        """Whether it has something to say yet; until then losses that need a teacher are left out."""
        return True

    @property
    def views(self) -> int | None:
        """How many views of a sample it can answer about: it finds in a batch's ``views`` which. None: any view."""
        return None

    def __call__(self, batch: Batch, outputs: frozenset[str]) -> ModelOutput:
        """The teacher's outputs for one of the student's batches; `outputs` names more of them than logits."""
        raise NotImplementedError

    def begin(self, student: PreTrainedModel) -> None:
        """Meet the student before the first step of its training, or before what was interrupted goes on."""

    def follow(self, student: PreTrainedModel, step: int, *, ends_cycle: bool) -> None:
        """See the student after optimizer step number `step`, counted from 1, and whether a cycle ends with it."""

    def state(self) -> Mapping[str, torch.Tensor]:
        """What of it belongs into a checkpoint."""
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Be as it was when `state` was taken. Raises RuntimeError where that was another teacher's."""
