"""Between covering and seeking (Agarwal et al., 2023, "On-Policy Distillation of Language Models", GKD)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.losses import Loss
from edgeforge.losses._distributions import divergence

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


class JensenShannon(Loss):
    """T^2 * JSD(beta) of softmax(logits / T), averaged over samples or tokens (arXiv:2306.13649, eq. 1).

    JSD(beta) = beta KL(P || M) + (1 - beta) KL(Q || M) with M = beta P + (1 - beta) Q, P the teacher's and Q the
    student's. It is bounded. Over beta it tends to KL(P || Q) (`soft_targets`) as beta goes to 0, and over 1 - beta to
    KL(Q || P) (`reverse_kl`) as beta goes to 1: small and large beta need a larger `weight`.
    """

    kind: Literal["jensen_shannon"] = "jensen_shannon"
    beta: float = Field(default=0.5, gt=0, lt=1, description="The teacher's share of the mixture M.")
    temperature: float = Field(default=1.0, gt=0, description="T: divides the logits of both.")

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
        import torch

        from edgeforge.losses._rows import mean_on_pairs

        def compare(ours: torch.Tensor, theirs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            ours, theirs = ((one / self.temperature).log_softmax(dim=1) for one in (ours, theirs))
            mixture = torch.logaddexp(theirs + math.log(self.beta), ours + math.log1p(-self.beta))
            return self.beta * divergence(theirs, mixture) + (1 - self.beta) * divergence(ours, mixture)

        return mean_on_pairs(student, teacher, batch, compare, loss=self.kind) * self.temperature**2
