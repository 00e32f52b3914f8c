"""Texts that a model writes, token by token, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from edgeforge.core.spec import Spec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Sampling(Spec):
    """How the next token is drawn. Base of what asks a model to write."""

    temperature: float = Field(
        default=1.0, ge=0, description="Divides the logits: below 1 the likely is written more often; 0: always."
    )
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Draw from the likeliest tokens that hold this share of the probability (nucleus sampling).",
    )

    def draw(self, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """One token for each row of logits (float32, (N, tokens)): int64, (N,)."""
        if self.temperature == 0:
            return logits.argmax(dim=1)
        probabilities = (logits / self.temperature).softmax(dim=1)
        if self.top_p < 1:
            ordered, order = probabilities.sort(dim=1, descending=True)
            before = ordered.cumsum(dim=1) - ordered
            # The token that reaches the share belongs to it, so that one is left whatever the share.
            probabilities = probabilities.scatter(1, order, ordered.masked_fill(before >= self.top_p, 0))
        return probabilities.multinomial(1, generator=generator)[:, 0]


def write(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    tokens: int,
    ends: frozenset[int] = frozenset(),
    generator: torch.Generator,
) -> list[list[int]]:
    """What `model` writes after each prompt of ids: at most so many tokens, up to and with one that ends it.

    `generator` is on the model's device; the same state writes the same texts after the same prompts. Gradients, and
    whether the model is in training mode, are the caller's to set.
    """
    import torch

    width, device = max(map(len, prompts)), model.device
    # Padding stands in front, so that every text goes on at the end of its row.
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    positions, memory = (mask.cumsum(dim=1) - 1).clamp(min=0), None
    written: list[list[int]] = [[] for _ in prompts]
    going = [True] * len(prompts)
    for _ in range(tokens):
        answer = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=memory,
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
        )
        memory = answer.past_key_values
        ids = sampling.draw(answer.logits[:, -1].float(), generator)[:, None]
        for row, token in enumerate(ids[:, 0].tolist()):
            if going[row]:
                written[row].append(token)
                going[row] = token not in ends
        if not any(going):
            break
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return written
