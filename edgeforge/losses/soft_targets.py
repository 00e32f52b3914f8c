"""The teacher's softened probabilities (Hinton, Vinyals and Dean, 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.losses import Loss
from edgeforge.losses._logits import logit_pair

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


class SoftTargets(Loss):
    """T^2 * KL(teacher || student) of softmax(logits / T), averaged over the batch (arXiv:1503.02531).

    Hinton's alpha*T^2*KL + (1-alpha)*CE is this with weight alpha beside `hard_labels` with weight 1-alpha.
    """

    kind: Literal["soft_targets"] = "soft_targets"
    temperature: float = Field(
        default=4.0, gt=0, description="T: above 1 softens both distributions, so that small probabilities count."
    )

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.losses._logits",)

    def compute(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Mapping[str, torch.Tensor],
        modules: torch.nn.Module | None,
    ) -> torch.Tensor:
        from torch.nn import functional

        ours, theirs = logit_pair(student, teacher, self.kind)
        divergence = functional.kl_div(
            functional.log_softmax(ours / self.temperature, dim=-1),
            functional.log_softmax(theirs / self.temperature, dim=-1),
            reduction="batchmean",
            log_target=True,
        )
        return divergence * self.temperature**2
