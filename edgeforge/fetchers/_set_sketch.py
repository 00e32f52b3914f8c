"""A small sketch of a set, from which a slightly larger set learns what it has too much.

An invertible Bloom lookup table (Goodrich and Mitzenmacher, 2011; Eppstein et al., 2011, "What's the Difference?"):
every name is XORed into HASHES of CELLS cells. What two equal sets put in cancels out, so the XOR of two sketches is
the sketch of their difference, whose names are read off cells that hold a single one, and taken out, until none is
left. With 54 names too many it fails for about one set in ten thousand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

NAME_BYTES = 8
HASHES = 5
CELLS_PER_HASH = 40


def sketch(names: Iterable[bytes]) -> list[int]:
    """The sketch of a set of names (bytes, of which the first NAME_BYTES count)."""
    cells = [0] * (HASHES * CELLS_PER_HASH)
    for name in names:
        _toggle(cells, name[:NAME_BYTES])
    return cells


def surplus(names: Iterable[bytes], wanted: Iterable[int]) -> set[bytes] | None:
    """The members of `names` that the sketched set `wanted` lacks; None where `names` lacks some of its members."""
    known = {int.from_bytes(name[:NAME_BYTES], "big"): name for name in names}
    cells = [mine ^ other for mine, other in zip(sketch(known.values()), wanted, strict=True)]
    found: set[bytes] = set()
    # A cell that reads as a known name holds that name alone: the XOR of several is a known one by a chance of 2^-48.
    while pure := [value for value in cells if value in known and known[value] not in found]:
        for value in set(pure):
            found.add(known[value])
            _toggle(cells, known[value][:NAME_BYTES])
    return None if any(cells) else found


def _toggle(cells: list[int], name: bytes) -> None:
    digest = hashlib.sha256(name).digest()
    for index in range(HASHES):
        place = int.from_bytes(digest[4 * index : 4 * index + 4], "big") % CELLS_PER_HASH
        cells[index * CELLS_PER_HASH + place] ^= int.from_bytes(name, "big")


def pack(cells: Iterable[int]) -> bytes:
    """Cells as bytes."""
    return b"".join(cell.to_bytes(NAME_BYTES, "big") for cell in cells)


def unpack(content: bytes) -> list[int]:
    """The cells that `pack` wrote."""
    return [int.from_bytes(content[at : at + NAME_BYTES], "big") for at in range(0, len(content), NAME_BYTES)]
