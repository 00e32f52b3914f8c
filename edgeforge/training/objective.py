"""The student and its losses as one module, so that one backward pass (and one process group) serves all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgeforge.core.task import Batch
from edgeforge.losses import Loss
from edgeforge.teachers import OpenTeacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput


class Trainee(nn.Module):
    """A student with what its losses train beside it (projections). Calling it gives the weighted loss (scalar)."""

    def __init__(self, student: PreTrainedModel, losses: Sequence[Loss], teacher: OpenTeacher | None) -> None:
        super().__init__()
        self.student = student
        self.losses = [loss for loss in losses if loss.weight > 0]
        self.projections = nn.ModuleDict()
        wanted = {name for loss in self.losses for name in loss.outputs}
        self.flags = {f"output_{name}": True for name in sorted(wanted)}
        # Not a submodule: a teacher has no place among the student's parameters.
        self._teach = [teacher] if teacher is not None and any(loss.needs_teacher for loss in self.losses) else []

    def shape_projections(self, batch: Batch) -> None:
        """Make the projections, from the shapes that one batch gives."""
        was_training = self.student.training
        self.student.eval()
        with torch.no_grad():
            student = self.student(**_inputs(batch), **self.flags)
            teacher = self.teacher_outputs(batch)
        self.student.train(was_training)
        for position, loss in enumerate(self.losses):
            modules = loss.modules(student, teacher)
            if modules is not None:
                self.projections[str(position)] = modules

    def teacher_outputs(self, batch: Batch) -> ModelOutput | None:
        """The teacher's outputs for a batch, without gradients; None where no loss asks for them."""
        return self._teach[0](batch, self.flags) if self._teach else None

    def forward(self, batch: Batch, teacher: ModelOutput | None) -> torch.Tensor:
        student = self.student(**_inputs(batch), **self.flags)
        terms, projections = [], dict(self.projections)
        for position, loss in enumerate(self.losses):
            terms.append(loss.weight * loss.compute(student, teacher, batch, projections.get(str(position))))
        return torch.stack(terms).sum()


def _inputs(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name != "labels"}
