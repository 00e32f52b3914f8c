"""Texts of different lengths in one batch: what is padding counts nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def real_tokens(batch: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Where tokens are real: bool, (N, length); None where nothing is padded (images)."""
    mask = batch.get("attention_mask")
    return None if mask is None else mask.bool()


def visible_tokens(batch: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Which tokens each one may look at: bool, (N, length or 1, length); None where nothing is padded (images).

    Real tokens; where the labels say what follows each token, only those up to itself (the model is causal).
    """
    real = real_tokens(batch)
    if real is None:
        return None
    labels = batch.get("labels")
    if labels is None or labels.dim() == 1:
        return real[:, None, :]
    length = real.shape[1]
    return real[:, None, :] & real.new_ones(length, length).tril()


def mean_per_sample(values: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    """The mean of each sample's values where `kept` (bool, may broadcast), averaged over the samples (scalar).

    So a short text counts as much as a long one, and a batch means the same whether it is computed at once or in
    pieces. A sample with nothing kept counts 0.
    """
    if kept is None:
        return values.mean()
    kept = kept.expand_as(values).flatten(1)
    sums = values.flatten(1).where(kept, 0).sum(dim=1)
    return (sums / kept.sum(dim=1).clamp(min=1)).mean()
