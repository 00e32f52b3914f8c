"""What losses between probabilities share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def divergence(theirs: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    """KL(theirs || ours) along the last axis of log probabilities."""
    from torch.nn import functional

    return functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1)
