"""A distribution over many tokens, kept short: the k likeliest, and the sum of all others as one more."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def shorten(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k likeliest tokens' ids (int64, (n, k)) and log probabilities with the tail's behind them ((n, k + 1)).

    logits: float32, (n, tokens), k below the number of tokens.
    """
    import torch

    top = logits.topk(k, dim=1)
    tail = _without(logits, top.indices).logsumexp(dim=1, keepdim=True)
    log_total = logits.logsumexp(dim=1, keepdim=True)
    return top.indices, torch.cat([top.values, tail], dim=1) - log_total


def bucketed(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Log probabilities of the tokens named, and of all others together: (n, k + 1), with gradient.

    logits: float32, (n, tokens); ids: int64, (n, k). The tail is added up from the other tokens, not taken as what the
    named ones leave of 1, which is noise where they leave little.
    """
    import torch

    tail = _without(logits, ids).logsumexp(dim=1, keepdim=True)
    return torch.cat([logits.gather(1, ids), tail], dim=1).log_softmax(dim=1)


def _without(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return logits.scatter(1, ids, float("-inf"))
