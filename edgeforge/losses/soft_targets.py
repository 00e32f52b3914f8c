"""The teacher's softened probabilities (Hinton, Vinyals and Dean, 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.losses import Loss
from edgeforge.losses._distributions import divergence

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


class SoftTargets(Loss):
    """T^2 * KL(teacher || student) of softmax(logits / T), averaged over samples or tokens (arXiv:1503.02531).

    Hinton's alpha*T^2*KL + (1-alpha)*CE is this with weight alpha beside `hard_labels` with weight 1-alpha. Samples
    without a label teach as well as others; tokens without one do not count (padding, a chat's questions).
    """

    kind: Literal["soft_targets"] = "soft_targets"
    temperature: float = Field(
        default=4.0, gt=0, description="T: above 1 softens both distributions, so that small probabilities count."
    )

    compares_buckets: ClassVar[bool] = True
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.losses._distributions",
        "edgeforge.losses._rows",
        "edgeforge.models.buckets",
    )

    def compute(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Mapping[str, torch.Tensor],
        modules: torch.nn.Module | None,
    ) -> torch.Tensor:
        from edgeforge.losses._rows import mean_on_pairs

        def compare(ours: torch.Tensor, theirs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            ours, theirs = ours / self.temperature, theirs / self.temperature
            return divergence(theirs.log_softmax(dim=1), ours.log_softmax(dim=1))

        return mean_on_pairs(student, teacher, batch, compare, loss=self.kind) * self.temperature**2
