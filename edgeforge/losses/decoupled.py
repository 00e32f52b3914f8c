"""Target and non-target knowledge apart (Zhao et al., 2022, "Decoupled Knowledge Distillation")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.losses import Loss
from edgeforge.losses._distributions import divergence

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


class Decoupled(Loss):
    """T^2 * (alpha * TCKD + beta * NCKD), averaged over the samples or tokens with a label (arXiv:2203.08679).

    TCKD is KL(teacher || student) between (p, 1 - p), p the probability of the true class; NCKD is the KL between
    the probabilities of the other classes among themselves. Soft targets weigh NCKD by the teacher's 1 - p, which
    silences it exactly where the teacher is sure; here the two are set apart. 0 where none has a label.
    """

    kind: Literal["decoupled"] = "decoupled"
    alpha: float = Field(default=1.0, ge=0, description="Weight of the true class against all others (TCKD).")
    beta: float = Field(default=8.0, ge=0, description="Weight of the other classes among themselves (NCKD).")
    temperature: float = Field(default=4.0, gt=0, description="T: divides the logits of both.")

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.losses._distributions", "edgeforge.losses._rows")

    def compute(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Mapping[str, torch.Tensor],
        modules: torch.nn.Module | None,
    ) -> torch.Tensor:
        from edgeforge.losses._rows import mean_on_pairs

        def compare(ours: torch.Tensor, theirs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            mine, wanted = (_decouple(one / self.temperature, labels) for one in (ours, theirs))
            tckd, nckd = (divergence(*pair) for pair in zip(wanted, mine, strict=True))
            return self.alpha * tckd + self.beta * nckd

        mean = mean_on_pairs(student, teacher, batch, compare, loss=self.kind, labelled=True)
        return mean * self.temperature**2


def _decouple(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log (p, 1 - p), shape (N, 2), and log probabilities among the other classes, shape (N, C - 1).

    In logarithms throughout: 1 - p of a sure teacher is zero in float32 long before its logarithm stops to matter.
    """
    import torch

    target = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], True)
    others = logits[~target].view(len(logits), logits.shape[1] - 1)
    pair = torch.stack([logits[target], others.logsumexp(dim=1)], dim=1)
    return pair.log_softmax(dim=1), others.log_softmax(dim=1)
