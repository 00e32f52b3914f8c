"""Relations instead of values (Huang et al., 2022, "Knowledge Distillation from A Stronger Teacher")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.losses import Loss

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


class Dist(Loss):
    """T^2 * (beta * inter + gamma * intra), Pearson distances of the softened probabilities (arXiv:2205.10536).

    inter: 1 - correlation over the classes, averaged over the samples; intra: 1 - correlation over the batch's
    samples, averaged over the classes (nothing where the batch has one sample). Matching correlations asks the
    student for the teacher's preferences, not its exact numbers, which helps where the teacher is much stronger. Of
    models that answer per token, the samples are the tokens with a label and the classes the vocabulary.
    """

    kind: Literal["dist"] = "dist"
    beta: float = Field(default=1.0, ge=0, description="Weight of the relations between classes, per sample.")
    gamma: float = Field(default=1.0, ge=0, description="Weight of the relations between samples, per class.")
    temperature: float = Field(default=1.0, gt=0, description="T: divides the logits of both.")

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.losses._rows",)

    def compute(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Mapping[str, torch.Tensor],
        modules: torch.nn.Module | None,
    ) -> torch.Tensor:
        from edgeforge.losses._rows import check_same_classes, counted

        assert teacher is not None, f"{self.kind} needs a teacher"
        check_same_classes(student, teacher, self.kind)
        rows = counted(student.logits, batch["labels"], labelled=False)
        ours, theirs = (
            (one.flatten(0, -2)[rows].float() / self.temperature).softmax(dim=1)
            for one in (student.logits, teacher.logits.detach())
        )
        loss = self.beta * _mean_distance(ours, theirs)
        if len(ours) > 1:
            loss = loss + self.gamma * _mean_distance(ours.t(), theirs.t())
        return loss * self.temperature**2


def _mean_distance(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """1 - Pearson's correlation of each pair of rows, averaged; a constant row counts as uncorrelated."""
    from torch.nn import functional

    from edgeforge.losses._rows import mean_of_rows

    def compare(mine: torch.Tensor, at: slice) -> torch.Tensor:
        wanted = theirs[at]
        mine, wanted = (one - one.mean(dim=1, keepdim=True) for one in (mine, wanted))
        return 1 - functional.cosine_similarity(mine, wanted, dim=1)

    return mean_of_rows(ours, compare)
