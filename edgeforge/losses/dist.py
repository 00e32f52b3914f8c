"""Relations instead of values (Huang et al., 2022, "Knowledge Distillation from A Stronger Teacher")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.losses import Loss
from edgeforge.losses._distributions import softened

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


class Dist(Loss):
    """T^2 * (beta * inter + gamma * intra), Pearson distances of the softened probabilities (arXiv:2205.10536).

    inter: 1 - correlation over the classes, averaged over the samples; intra: 1 - correlation over the batch's
    samples, averaged over the classes (nothing where the batch has one sample). Matching correlations asks the
    student for the teacher's preferences, not its exact numbers, which helps where the teacher is much stronger.
    """

    kind: Literal["dist"] = "dist"
    beta: float = Field(default=1.0, ge=0, description="Weight of the relations between classes, per sample.")
    gamma: float = Field(default=1.0, ge=0, description="Weight of the relations between samples, per class.")
    temperature: float = Field(default=1.0, gt=0, description="T: divides the logits of both.")

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.losses._distributions",)

    def compute(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Mapping[str, torch.Tensor],
        modules: torch.nn.Module | None,
    ) -> torch.Tensor:
        logits = softened(student, teacher, self.temperature, self.kind)
        ours, theirs = (one.softmax(dim=1) for one in logits)
        loss = self.beta * _pearson_distance(ours, theirs, dim=1)
        if len(ours) > 1:
            loss = loss + self.gamma * _pearson_distance(ours, theirs, dim=0)
        return loss * self.temperature**2


def _pearson_distance(ours: torch.Tensor, theirs: torch.Tensor, *, dim: int) -> torch.Tensor:
    """1 - Pearson's correlation along `dim`, averaged over the other axis; a constant row counts as uncorrelated."""
    from torch.nn import functional

    ours = ours - ours.mean(dim=dim, keepdim=True)
    theirs = theirs - theirs.mean(dim=dim, keepdim=True)
    return 1 - functional.cosine_similarity(ours, theirs, dim=dim).mean()
