"""The mean of several models' probabilities, as logits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from edgeforge.core.errors import ModelError

if TYPE_CHECKING:
    import torch


def mean_as_logits(logits: Iterable[torch.Tensor], shares: Sequence[float]) -> torch.Tensor:
    """log(sum of share * softmax(logits)), float32: a softmax gives the mean of the models' probabilities.

    Each model's logits have the same shape, (N, classes) or (N, length, tokens); they are asked for one after the other
    and shares sum to 1. Raises ModelError where a model answers for other classes than the first.
    """
    import torch

    total: torch.Tensor | None = None
    for number, (own, share) in enumerate(zip(logits, shares, strict=True)):
        part = own.float().log_softmax(dim=-1) + math.log(share)
        if total is not None and part.shape != total.shape:
            raise ModelError(
                f"it answers for {part.shape[-1]} labels or tokens, and the first member for {total.shape[-1]}",
                where=f"teacher.members[{number}]",
                remedy="use members with the same labels, or tokens",
            )
        total = part if total is None else torch.logaddexp(total, part)
    assert total is not None
    return total
