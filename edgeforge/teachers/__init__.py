"""Where a student's signal comes from: one file per kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from edgeforge.core.artifact import Artifact
from edgeforge.core.spec import Spec

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput

    from edgeforge.core.task import Batch, TaskData
    from edgeforge.models import Model


class Teacher(Spec):
    """Base of every teacher."""

    kind: str
    logits_only: ClassVar[bool] = False
    """Whether it cannot answer for more than logits, and not about augmented samples."""

    def source(self) -> str | Model | None:
        """Which artifact it reads: a stage's name, a model of its own, or None for the chain's model."""
        raise NotImplementedError

    def keeps(self) -> int | None:
        """How many of its likeliest answers it gives, beside the sum of all others; None: it gives all."""
        return None

    def check_data(self, data: TaskData) -> None:
        """Refuse data that it cannot answer about, before any work. Raises IncompatiblePlanError."""

    def open(self, artifact: Artifact, device: torch.device, data: TaskData) -> OpenTeacher:
        """Ready to answer batches of `data`, the student's. Raises ModelError where it cannot read them."""
        raise NotImplementedError


class OpenTeacher:
    """A teacher that answers batches, without gradients."""

    def __call__(self, batch: Batch, outputs: frozenset[str]) -> ModelOutput:
        """The teacher's outputs for one of the student's batches; `outputs` names more of them than logits."""
        raise NotImplementedError
