"""Texts that say what others say already."""

from __future__ import annotations

import re
from collections.abc import Iterable

SHINGLE_WORDS = 5
SHARED_PART = 0.5

_ADDRESSES = re.compile(r"\S*(?:@|://|www\.)\S*")
_NO_LETTERS = re.compile(r"[\W\d_]+")


def letters(text: str) -> str:
    """The same for texts that differ in case, blanks, digits, punctuation and addresses only."""
    return _NO_LETTERS.sub(" ", _ADDRESSES.sub(" ", text.casefold())).strip()


def shingles(text: str) -> Iterable[str]:
    """Every run of five words of what `letters` gave (Broder, 1997)."""
    words = text.split()
    return (" ".join(words[at : at + SHINGLE_WORDS]) for at in range(len(words) - SHINGLE_WORDS + 1))


class Known:
    """Texts that are not to be said again."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._whole: set[str] = set()
        self._shingles: set[int] = set()  # their hashes, of this process: a book's worth of texts is not kept
        for text in map(letters, texts):
            self._whole.add(text)
            self._shingles.update(map(hash, shingles(text)))

    def holds(self, text: str) -> bool:
        """Whether a text is one of them but for its form, or has at least half of its runs of five words from them."""
        plain = letters(text)
        own = {hash(shingle) for shingle in shingles(plain)}
        return plain in self._whole or (bool(own) and len(own & self._shingles) >= SHARED_PART * len(own))
