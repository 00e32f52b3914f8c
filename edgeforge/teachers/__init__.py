"""Where a student's signal comes from: one file per kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgeforge.core.artifact import Artifact
from edgeforge.core.spec import Spec

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput

    from edgeforge.core.task import Batch
    from edgeforge.models import Model


class Teacher(Spec):
    """Base of every teacher."""

    kind: str

    def source(self) -> str | Model | None:
        """Which artifact it reads: a stage's name, a model of its own, or None for the chain's model."""
        raise NotImplementedError

    def open(self, artifact: Artifact, device: torch.device) -> OpenTeacher:
        """Ready to answer."""
        raise NotImplementedError


class OpenTeacher:
    """A teacher that answers batches, without gradients."""

    def __call__(self, batch: Batch, outputs: Mapping[str, bool]) -> ModelOutput:
        """The teacher's outputs for a batch; `outputs` are extra flags such as ``output_hidden_states``."""
        raise NotImplementedError
