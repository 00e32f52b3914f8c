"""Mails that say the same: copies, to be dropped, and relatives, to be kept on one side of a split."""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence

from edgeforge.data._near_duplicates import SHARED_PART, letters, shingles
from edgeforge.fetchers._mail import Mail

ONE_SHINGLE_IN = 4
"""A sample of the shingles, chosen by their hash, finds the same pairs for a fraction of the work (Broder, 1997)."""
KNOWN_TO_MOST = 30
"""A shingle in more mails than this is a footer or an advertisement, and makes no relatives."""
SHARED_SHINGLES = 3

_REPLY = re.compile(r"^(?:(?:re|fwd?|aw|sv)\b[^:]{0,4}:|\[[^\]]*\]|\s)+")


def copies_key(mail: Mail) -> str:
    """Equal for mails that differ in case, blanks, digits, punctuation and addresses only."""
    return letters(f"{mail.subject} {mail.body}") or f"{mail.subject} {mail.body}"


def families(mails: Sequence[Mail]) -> list[int]:
    """A number for each mail, equal for relatives and for relatives of relatives: the first one's position.

    Relatives are mails of one subject but for "Re:" and list tags (a thread), of one body, and those that share at
    least half of the five-word shingles of the shorter one.
    """
    parent = list(range(len(mails)))

    def root(position: int) -> int:
        while parent[position] != position:
            parent[position] = parent[parent[position]]
            position = parent[position]
        return position

    bodies = [letters(mail.body) for mail in mails]
    threads = [letters(_REPLY.sub("", mail.subject.casefold())) or letters(mail.subject) for mail in mails]
    for first, second in (*_equal(threads), *_equal(bodies), *_overlapping(bodies)):
        older, younger = sorted((root(first), root(second)))
        parent[younger] = older
    return [root(position) for position in range(len(mails))]


def _equal(keys: Iterable[Hashable]) -> Iterator[tuple[int, int]]:
    first: dict[Hashable, int] = {}
    for position, key in enumerate(keys):
        if key:
            yield first.setdefault(key, position), position


def _overlapping(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    holders: dict[str, list[int]] = defaultdict(list)
    for position, text in enumerate(texts):
        for shingle in _shingles(text):
            holders[shingle].append(position)
    own: Counter[int] = Counter()
    shared: Counter[tuple[int, int]] = Counter()
    for positions in holders.values():
        if len(positions) <= KNOWN_TO_MOST:
            own.update(positions)
            shared.update((first, second) for index, second in enumerate(positions) for first in positions[:index])
    for pair, count in shared.items():
        if count >= max(SHARED_SHINGLES, SHARED_PART * min(own[pair[0]], own[pair[1]])):
            yield pair


def _shingles(text: str) -> set[str]:
    return {shingle for shingle in shingles(text) if zlib.crc32(shingle.encode()) % ONE_SHINGLE_IN == 0}
