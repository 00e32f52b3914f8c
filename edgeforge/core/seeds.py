"""Random choices that do not depend on what ran before: every seed is derived from the run's seed and a purpose."""

from __future__ import annotations

import hashlib


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, the same on every machine: ``derive(0, "order", epoch)``."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def of_view(seed: int, view: int) -> int:
    """The seed of a view: all samples as they are augmented in one epoch, or as a teacher was once asked about them."""
    return derive(seed, "augment", view)
