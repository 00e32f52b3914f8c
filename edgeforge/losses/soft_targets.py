"""The teacher's softened probabilities (Hinton, Vinyals and Dean, 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.losses import Loss
from edgeforge.losses._distributions import divergence, softened

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


class SoftTargets(Loss):
    """T^2 * KL(teacher || student) of softmax(logits / T), averaged over the batch (arXiv:1503.02531).

    Hinton's alpha*T^2*KL + (1-alpha)*CE is this with weight alpha beside `hard_labels` with weight 1-alpha. Samples
    without a label teach as well as others.
    """

    kind: Literal["soft_targets"] = "soft_targets"
    temperature: float = Field(
        default=4.0, gt=0, description="T: above 1 softens both distributions, so that small probabilities count."
    )

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.losses._distributions",)

    def compute(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Mapping[str, torch.Tensor],
        modules: torch.nn.Module | None,
    ) -> torch.Tensor:
        ours, theirs = softened(student, teacher, self.temperature, self.kind)
        return divergence(theirs.log_softmax(dim=1), ours.log_softmax(dim=1)).mean() * self.temperature**2
