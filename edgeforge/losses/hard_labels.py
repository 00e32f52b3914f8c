"""Cross entropy with the true labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.losses import Loss

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


class HardLabels(Loss):
    """Cross entropy with the true labels: what a model without a teacher learns from.

    Averaged over the samples, or tokens, that have a label; 0 where none has.
    """

    kind: Literal["hard_labels"] = "hard_labels"
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the target spread evenly over all classes (Szegedy et al. 2016)."
    )

    needs_teacher: ClassVar[bool] = False
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.losses._rows",)

    def compute(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Mapping[str, torch.Tensor],
        modules: torch.nn.Module | None,
    ) -> torch.Tensor:
        from torch.nn import functional

        from edgeforge.losses._rows import mean_on_labels

        def compare(ours: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return functional.cross_entropy(ours, labels, reduction="none", label_smoothing=self.label_smoothing)

        return mean_on_labels(student, batch, compare)
