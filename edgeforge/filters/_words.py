"""Texts as words that are compared."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Sequence

_WORDS = re.compile(r"[0-9]+(?:[.,][0-9]+)*|\w+|[-+*/=<>%^\u00d7\u00f7\u2212]")


def words(text: str) -> list[str]:
    """Words, numbers and operators, without case: texts that differ in blanks and punctuation only have the same.

    Numbers count, unlike in `edgeforge.data._near_duplicates`: in many a task they are all that differs.
    """
    return _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())


def runs(found: Sequence[str], length: int) -> set[Hashable]:
    """Every run of so many words; of fewer words, all of them."""
    if not found:
        return set()
    return {tuple(found[at : at + length]) for at in range(max(1, len(found) - length + 1))}
