"""Seeking the teacher's modes (Gu et al., 2023, "MiniLLM: Knowledge Distillation of Large Language Models")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.losses import Loss
from edgeforge.losses._distributions import divergence

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


class ReverseKl(Loss):
    """T^2 * KL(student || teacher) of softmax(logits / T), averaged over samples or tokens (arXiv:2306.08543).

    A student too small to cover all that the teacher finds likely (`soft_targets` asks for that) does better to be
    right about some of it: this one pays for what the teacher finds unlikely. It is the divergence at every token of
    given texts; with `on_policy`, of the student's own, as in the paper, whose policy gradient through the choice of
    tokens it leaves out, as GKD does (arXiv:2306.13649).
    """

    kind: Literal["reverse_kl"] = "reverse_kl"
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
        from edgeforge.losses._rows import mean_on_pairs

        def compare(ours: torch.Tensor, theirs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            ours, theirs = ours / self.temperature, theirs / self.temperature
            return divergence(ours.log_softmax(dim=1), theirs.log_softmax(dim=1))

        return mean_on_pairs(student, teacher, batch, compare, loss=self.kind) * self.temperature**2
