"""Each text once, in whatever words."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.core.seeds import derive
from edgeforge.filters import Context, Filter, Part, Sample
from edgeforge.filters._words import runs, words

if TYPE_CHECKING:
    import numpy as np

BANDS, ROWS = 42, 3
"""Pairs that share half of their runs of words are looked at with a chance of 99.6 %, those that share 70 % always."""


class NearDuplicates(Filter):
    """Leave out texts that share most of their runs of words with one that is kept (Broder, 1997, MinHash).

    Likeness is Jaccard's: runs that both have, as a share of those that either has. MinHash finds the pairs to look
    at (42 bands of 3); what is left out was then compared exactly, so nothing is left out by chance. Where all prompts
    are one request with another number in it, look at the answers alone.
    """

    kind: Literal["near_duplicates"] = "near_duplicates"
    likeness: float = Field(default=0.7, ge=0.5, le=1, description="From how much on two texts are the same.")
    words: int = Field(default=3, ge=1, description="Words in a run.")
    of: Part = Field(default="both", description="What must differ.")

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.filters._words",)

    def reasons(self, samples: Sequence[Sample], context: Context) -> list[str | None]:
        kept: list[frozenset[int]] = []
        buckets: dict[Hashable, list[int]] = defaultdict(list)
        multipliers, offsets = _functions()
        found: list[str | None] = []
        for sample in samples:
            own = _hashes(runs(words(sample.part(self.of)), self.words))
            if not own:
                found.append(None)
                continue
            bands = _bands(own, multipliers, offsets)
            near = {position for band in bands for position in buckets.get(band, ())}
            if any(self._alike(own, kept[position]) for position in near):
                found.append("almost there already")
                continue
            for band in bands:
                buckets[band].append(len(kept))
            kept.append(own)
            found.append(None)
        return found

    def _alike(self, first: frozenset[int], second: frozenset[int]) -> bool:
        shared = len(first & second)
        return shared >= self.likeness * (len(first) + len(second) - shared)


def _hashes(shingles: Iterable[Hashable]) -> frozenset[int]:
    """The same on every machine, unlike `hash`."""
    return frozenset(
        int.from_bytes(hashlib.blake2b(repr(shingle).encode(), digest_size=8).digest(), "big") for shingle in shingles
    )


def _functions() -> tuple[np.ndarray, np.ndarray]:
    """Multiply-shift hash functions from 32 bits to 32 (Dietzfelbinger, 1996): uint64, shape (BANDS * ROWS, 1)."""
    import numpy as np

    drawn = np.random.default_rng(derive(0, "minhash")).integers(0, 2**64, size=(2, BANDS * ROWS, 1), dtype=np.uint64)
    return drawn[0] | np.uint64(1), drawn[1]


def _bands(own: frozenset[int], multipliers: np.ndarray, offsets: np.ndarray) -> list[Hashable]:
    import numpy as np

    keys = np.fromiter((value >> 32 for value in own), dtype=np.uint64, count=len(own))
    least = ((multipliers * keys + offsets) >> np.uint64(32)).min(axis=1).reshape(BANDS, ROWS)
    return [(number, *row) for number, row in enumerate(least.tolist())]
