"""Models, or exits of one, that learn at the same time: from labels, and from each other's answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.utils import ModelOutput

from edgeforge.core.task import Batch, model_inputs
from edgeforge.losses import Loss, Training
from edgeforge.models.outputs import run
from edgeforge.training.objective import Trainee

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Learners(nn.Module):
    """Base of what learns together, in a fixed order."""

    def answers(self, inputs: Batch, outputs: frozenset[str]) -> list[ModelOutput]:
        """What each says to one batch; `outputs` names more of it than logits (see `edgeforge.models.outputs`)."""
        raise NotImplementedError

    def logits(self, inputs: Batch, learner: int) -> torch.Tensor:
        """What one of them says."""
        raise NotImplementedError


class Cohort(Learners):
    """Whole models, none of which shares weights with another."""

    def __init__(self, members: Sequence[PreTrainedModel]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def answers(self, inputs: Batch, outputs: frozenset[str]) -> list[ModelOutput]:
        return [run(member, inputs, outputs) for member in self.members]

    def logits(self, inputs: Batch, learner: int) -> torch.Tensor:
        logits: torch.Tensor = self.members[learner](**inputs).logits
        return logits


@dataclass(frozen=True)
class _Lesson:
    """One term of the sum: a learner, a loss by its position, and whose answer it is held against."""

    learner: int
    loss: int
    teacher: int | None
    weight: float

    @property
    def key(self) -> str:
        return f"{self.learner}-{self.loss}-{self.teacher}"


class Peers(Trainee):
    """Learners with their losses. Calling it gives the sum over all learners of what each one minimises.

    That is the weighted sum of its losses, where one that needs a teacher is averaged over the learner's teachers. A
    teacher's answer is what that learner says in the same step, taken as it is: no gradient flows into it.
    """

    def __init__(
        self, learners: Learners, losses: Sequence[Loss], *, teachers: Sequence[Sequence[int]], chosen: Sequence[int]
    ) -> None:
        """`teachers[i]` teach learner i, which may have none. `chosen` are those whose best answers are validated."""
        super().__init__(learners, losses, None)
        self._chosen = chosen
        self._lessons: list[_Lesson] = []
        for learner, others in enumerate(teachers):
            for position, loss in enumerate(self.losses):
                by: Sequence[int | None] = others if loss.needs_teacher else [None]
                self._lessons += [_Lesson(learner, position, other, loss.weight / len(by)) for other in by]

    def make_loss_modules(self, batch: Batch, training: Training) -> None:
        was_training = self.student.training
        self.student.eval()
        with torch.no_grad():
            answers = self.student.answers(model_inputs(batch), self.outputs)
        self.student.train(was_training)
        for lesson in self._lessons:
            teacher = None if lesson.teacher is None else answers[lesson.teacher]
            modules = self.losses[lesson.loss].modules(answers[lesson.learner], teacher, training)
            if modules is not None:
                self.loss_modules[lesson.key] = modules

    def answering(self) -> Sequence[Callable[[Batch], torch.Tensor]]:
        def answer(learner: int) -> Callable[[Batch], torch.Tensor]:
            return lambda inputs: self.student.logits(inputs, learner)

        return [answer(learner) for learner in self._chosen]

    def forward(self, batch: Batch, teacher: ModelOutput | None, own_words: bool = False) -> torch.Tensor:
        """`teacher` is None: the learners have each other. See `Trainee.forward`."""
        answers = self.student.answers(model_inputs(batch), self.outputs)
        told = [_as_told(answer) for answer in answers]
        terms, modules = [], dict(self.loss_modules)
        with torch.autocast(batch["labels"].device.type, enabled=False):
            for lesson in self._lessons:
                by = None if lesson.teacher is None else told[lesson.teacher]
                loss = self.losses[lesson.loss].compute(answers[lesson.learner], by, batch, modules.get(lesson.key))
                terms.append(lesson.weight * loss)
        return torch.stack(terms).sum()


def _as_told(answer: ModelOutput) -> ModelOutput:
    """An answer as a teacher's: without gradient."""
    found = {"logits": answer.logits.detach()}
    if answer.get("hidden_states") is not None:
        found["hidden_states"] = tuple(state.detach() for state in answer.hidden_states)
    return ModelOutput(found)
