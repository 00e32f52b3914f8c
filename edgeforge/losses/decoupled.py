"""Target and non-target knowledge apart (Zhao et al., 2022, "Decoupled Knowledge Distillation")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.losses import Loss
from edgeforge.losses._logits import logit_pair

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


class Decoupled(Loss):
    """T^2 * (alpha * TCKD + beta * NCKD), averaged over the batch (arXiv:2203.08679).

    TCKD is KL(teacher || student) between (p, 1 - p), p the probability of the true class; NCKD is the KL between
    the probabilities of the other classes among themselves. Soft targets weigh NCKD by the teacher's 1 - p, which
    silences it exactly where the teacher is sure; here the two are set apart.
    """

    kind: Literal["decoupled"] = "decoupled"
    alpha: float = Field(default=1.0, ge=0, description="Weight of the true class against all others (TCKD).")
    beta: float = Field(default=8.0, ge=0, description="Weight of the other classes among themselves (NCKD).")
    temperature: float = Field(default=4.0, gt=0, description="T: divides the logits of both.")

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.losses._logits",)

    def compute(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Mapping[str, torch.Tensor],
        modules: torch.nn.Module | None,
    ) -> torch.Tensor:
        ours, theirs = logit_pair(student, teacher, self.kind)
        ours_target, ours_others = _decouple(ours / self.temperature, batch["labels"])
        theirs_target, theirs_others = _decouple(theirs / self.temperature, batch["labels"])
        tckd = _divergence(theirs_target, ours_target)
        nckd = _divergence(theirs_others, ours_others)
        return (self.alpha * tckd + self.beta * nckd) * self.temperature**2


def _decouple(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log (p, 1 - p), shape (N, 2), and log probabilities among the other classes, shape (N, C - 1).

    In logarithms throughout: 1 - p of a sure teacher is zero in float32 long before its logarithm stops to matter.
    """
    import torch

    target = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], True)
    others = logits[~target].view(len(logits), -1)
    pair = torch.stack([logits[target], others.logsumexp(dim=1)], dim=1)
    return pair.log_softmax(dim=1), others.log_softmax(dim=1)


def _divergence(theirs: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    """KL(theirs || ours) of log probabilities, averaged over the batch."""
    from torch.nn import functional

    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
