"""A file that is written piece by piece, and goes on after a kill where it last reached the disk."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

FLUSH_SECONDS = 30.0


class Stream:
    """A file that grows under a draft's ``checkpoint/`` and gets its place when it is whole.

    `done` is how many units of work (the caller's) are in it. What was written after the last flush is cut off again.
    """

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._state = folder / name, folder / f"{name}.json"
        state = {"done": 0, "bytes": 0}
        if self._path.is_file() and self._state.is_file():
            state = json.loads(self._state.read_text(encoding="utf-8"))
        self.done = int(state["done"])
        self._file = self._path.open("r+b" if self._path.is_file() else "w+b")
        self._file.truncate(state["bytes"])
        self._file.seek(0, os.SEEK_END)
        self._flushed = time.monotonic()

    def append(self, content: bytes, done: int) -> None:
        """Write `content`, with which `done` units are finished. Raises OSError where the disk refuses."""
        self._file.write(content)
        self.done = done
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Put all so far on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        partial = self._state.with_suffix(".partial")
        partial.write_text(json.dumps({"done": self.done, "bytes": self._file.tell()}), encoding="utf-8")
        partial.replace(self._state)
        self._flushed = time.monotonic()

    def finish(self, target: Path) -> None:
        """Give the whole file its place."""
        self._file.close()
        self._path.replace(target)
