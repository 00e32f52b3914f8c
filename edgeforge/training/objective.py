"""The student and its losses as one module, so that one backward pass (and one process group) serves all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgeforge.core.task import Batch, model_inputs
from edgeforge.losses import Loss, Training
from edgeforge.models.outputs import run
from edgeforge.teachers import OpenTeacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput


class Trainee(nn.Module):
    """A student with what its losses keep beside it (projections, memories). Calling it gives the weighted loss."""

    def __init__(self, student: PreTrainedModel, losses: Sequence[Loss], teacher: OpenTeacher | None) -> None:
        super().__init__()
        self.student = student
        self.losses = [loss for loss in losses if loss.weight > 0]
        self.loss_modules = nn.ModuleDict()
        self.outputs = frozenset(name for loss in self.losses for name in loss.outputs)
        # Not a submodule: a teacher has no place among the student's parameters.
        self._teach = [teacher] if teacher is not None and any(loss.needs_teacher for loss in self.losses) else []

    def make_loss_modules(self, batch: Batch, training: Training) -> None:
        """Make what the losses keep, by the shapes that one batch gives."""
        was_training = self.student.training
        self.student.eval()
        with torch.no_grad():
            student = run(self.student, model_inputs(batch), self.outputs)
            teacher = None if self.teacher is None else self.teacher(batch, self.outputs)
        self.student.train(was_training)
        for position, loss in enumerate(self.losses):
            modules = loss.modules(student, teacher, training)
            if modules is not None:
                self.loss_modules[str(position)] = modules

    def answering(self) -> Sequence[Callable[[Batch], torch.Tensor]]:
        """What is validated, each as model inputs -> logits. Where there are several, the best is what counts."""
        return (lambda inputs: self.student(**inputs).logits,)

    @property
    def teacher(self) -> OpenTeacher | None:
        """Who is asked; None where no loss asks."""
        return self._teach[0] if self._teach else None

    def teacher_outputs(self, batch: Batch) -> ModelOutput | None:
        """The teacher's outputs for a batch, without gradients; None where no loss asks, or it does not teach yet."""
        return self.teacher(batch, self.outputs) if self.teacher is not None and self.teacher.teaches else None

    def forward(self, batch: Batch, teacher: ModelOutput | None, own_words: bool = False) -> torch.Tensor:
        """`own_words`: the student wrote this batch, so that nothing in it is known to be right but by the teacher."""
        student = run(self.student, model_inputs(batch), self.outputs)
        terms, modules = [], dict(self.loss_modules)
        untaught = self.teacher is not None and not self.teacher.teaches
        # Models may run in bfloat16; differences between two of them are too small for it.
        with torch.autocast(batch["labels"].device.type, enabled=False):
            for position, loss in enumerate(self.losses):
                if (own_words and not loss.needs_teacher) or (untaught and loss.needs_teacher):
                    continue
                terms.append(loss.weight * loss.compute(student, teacher, batch, modules.get(str(position))))
        return torch.stack(terms).sum()
