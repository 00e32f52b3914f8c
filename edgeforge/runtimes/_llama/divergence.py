"""How far one model's predictions are from another's, token by token."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

CHUNK_VALUES = 1 << 22
"""Most float64 values of one array at a time (32 MB)."""


def divergence(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence of `logits` from `reference`, both (tokens, vocabulary); float64, (tokens,), nats.

    NaN where numbers are not finite.
    """
    found = np.empty(len(logits))
    for part in rows_of(logits):
        expected, given = log_softmax(reference[part]), log_softmax(logits[part])
        found[part] = np.sum(np.exp(expected) * (expected - given), axis=1)
    return np.where(found < 0, 0.0, found)  # below zero by rounding only


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64, the shape of `logits`."""
    with np.errstate(invalid="ignore"):
        shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
        result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def rows_of(logits: np.ndarray) -> Iterator[slice]:
    """Slices of the first axis, each of at most `CHUNK_VALUES` values."""
    size = max(1, CHUNK_VALUES // logits.shape[1])
    yield from (slice(start, start + size) for start in range(0, len(logits), size))
