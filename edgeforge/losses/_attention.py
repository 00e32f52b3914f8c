"""What losses on self-attention share: the blocks' states, and how tokens relate by them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgeforge.core.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


def attention_states(outputs: ModelOutput | None, name: str, who: str, loss: str) -> Sequence[torch.Tensor]:
    """``query_states``, ``key_states`` or ``value_states`` of every block: (N, heads, length, head size).

    Of decoders the queries and keys are normed and rotated by position. Keys and values may have fewer heads.

    Raises ModelError where a model has no blocks with them.
    """
    assert outputs is not None, f"{loss} needs a teacher"
    states = outputs.get(name)
    if not states:
        raise ModelError(
            f"the {who} has no self-attention with query, key and value projections, which {loss} needs",
            remedy="use losses on hidden states or logits for this model",
        )
    return states  # type: ignore[no-any-return]


def scores(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``left @ right^T / sqrt(head size)``, float32: (N, heads, length, length), without mask.

    Where `right` has fewer heads, each serves as many neighbours of `left`, as in grouped-query attention.
    """
    import torch

    if right.shape[1] != left.shape[1]:
        right = right.repeat_interleave(left.shape[1] // right.shape[1], dim=1)
    return torch.matmul(left.float(), right.float().transpose(-1, -2)) / math.sqrt(left.shape[-1])


def log_relations(scores: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
    """Logarithms of the softmax over the tokens that each may look at (`visible`: bool, (N, length or 1, length))."""
    import torch

    if visible is not None:
        # Not -inf: the divergence of two distributions that are both zero somewhere would be no number.
        scores = scores.masked_fill(~visible[:, None], torch.finfo(scores.dtype).min / 2)
    return scores.log_softmax(dim=-1)
