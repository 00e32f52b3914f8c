"""On-policy distillation: the student writes, the teacher judges (Agarwal et al., 2023, GKD, arXiv:2306.13649)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from edgeforge.core.seeds import derive
from edgeforge.core.task import NO_LABEL, Batch
from edgeforge.training.sampling import Sampling, write

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class OnPolicy(Sampling):
    """Teach on texts that the student writes as it is, so that it learns to go on from its own mistakes.

    In a share of the steps, drawn at random, each window is kept up to `prompt_tokens` and the student writes the
    rest; the losses that have a teacher compare the two on what was written. The draw of tokens is not differentiated,
    and losses without a teacher have no part in such a step. It costs a forward pass of the student per token.
    """

    share: float = Field(default=0.5, gt=0, le=1, description="Share of the steps: GKD's lambda.")
    prompt_tokens: int = Field(default=32, ge=1, description="Tokens of each window that are kept; at most half of it.")
    max_new_tokens: int | None = Field(
        default=None, ge=1, description="Tokens that the student writes; absent: to the end of the window."
    )

    def applies(self, seed: int, step: int) -> bool:
        """Whether this step is one of them."""
        return derive(seed, "on-policy", step) < self.share * (1 << 63)

    def rewritten(self, batch: Batch, student: PreTrainedModel, seed: int) -> Batch:
        """The same samples as the student would go on with them.

        The student stays in evaluation mode. Labels are what it wrote.
        """
        import torch

        length = batch["input_ids"].shape[1]
        kept = min(self.prompt_tokens, max(1, length // 2))
        new = min(self.max_new_tokens or length, length - kept)
        prompts = batch["input_ids"][:, :kept]
        generator = torch.Generator(device=prompts.device).manual_seed(seed)
        student.eval()
        with torch.no_grad():
            written = write(student, prompts.tolist(), self, tokens=new, generator=generator)
        ids = torch.cat([prompts, torch.tensor(written, device=prompts.device)], dim=1)
        labels = torch.full_like(ids, NO_LABEL)
        labels[:, kept - 1 : -1] = ids[:, kept:]
        return {**batch, "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
