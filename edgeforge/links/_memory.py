"""How fast this machine's memory can be read, which bounds how fast a language model writes."""

from __future__ import annotations

import contextlib
import mmap
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from edgeforge.links._worker import Clock

BLOCK_BYTES = 256 * 2**20
"""More than any cache of a processor of today that is found in a device holds."""
READS = 3
HUGE_PAGE = 2 * 2**20


class Memory:
    """A block for each thread, in huge pages where the system has them, that is read from end to end.

    In pages of 4 kB a quarter is lost to the look-up of addresses, which says more of the pages than of the memory.
    """

    def __init__(self, threads: int, clock: Clock) -> None:
        before = _huge_bytes()
        self._clock = clock
        self._blocks = [_block() for _ in range(threads)]
        after = _huge_bytes()
        self.huge_pages = before is not None and after is not None and after - before >= threads * BLOCK_BYTES // 2
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def gb_per_s(self) -> float:
        """10^9 bytes a second, of the quickest of a few reads."""
        return max(self._once() for _ in range(READS))

    def _once(self) -> float:
        begin = self._clock.now_ns()
        if self._pool is None:
            _read(self._blocks[0])
        else:
            list(self._pool.map(_read, self._blocks))
        return sum(block.nbytes for block in self._blocks) / (self._clock.now_ns() - begin)

    def described(self) -> dict[str, Any]:
        """The method, as plain JSON."""
        return {"block_bytes": BLOCK_BYTES, "threads": len(self._blocks), "huge_pages": self.huge_pages}


def _block() -> np.ndarray:
    """int64, on whole huge pages, written once so that each page has memory of its own."""
    size = BLOCK_BYTES + HUGE_PAGE
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared pages are never huge
        with contextlib.suppress(OSError):  # a kernel without them; `huge_pages` says so
            pages.madvise(mmap.MADV_HUGEPAGE)
    else:
        pages = mmap.mmap(-1, size)
    whole = np.frombuffer(pages, dtype=np.uint8)
    start = -whole.ctypes.data % HUGE_PAGE
    block = whole[start : start + BLOCK_BYTES].view(np.int64)
    block[:] = 1
    return block


def _read(block: np.ndarray) -> None:
    np.bitwise_or.reduce(block)


def _huge_bytes() -> int | None:
    """Memory of this process in huge pages; None where the system does not say."""
    path = Path("/proc/self/smaps_rollup")
    if not path.exists():
        return None
    match = re.search(r"^AnonHugePages:\s+(\d+) kB$", path.read_text(encoding="ascii"), re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None
