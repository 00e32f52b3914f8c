"""What a student is taught with: one file per loss. A stage's loss is the weighted sum of those it names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from edgeforge.core.spec import Spec

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


class Loss(Spec):
    """Base of every loss.

    Class facts: `needs_teacher`; `outputs` names the extra model outputs it reads (``hidden_states``,
    ``attentions``), which are computed only when some loss asks.
    """

    kind: str
    weight: float = Field(default=1.0, ge=0, description="Its factor in the sum of all losses.")

    needs_teacher: ClassVar[bool] = True
    outputs: ClassVar[frozenset[str]] = frozenset()

    def modules(self, student: ModelOutput, teacher: ModelOutput | None) -> torch.nn.Module | None:
        """What this loss trains beside the student (projections), shaped by one example's outputs; usually nothing.

        They are optimized and checkpointed with the student, and thrown away afterwards.
        """
        return None

    def compute(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Mapping[str, torch.Tensor],
        modules: torch.nn.Module | None,
    ) -> torch.Tensor:
        """The unweighted loss, a scalar averaged over the batch. `batch["labels"]`: int64, shape (N,)."""
        raise NotImplementedError
