"""Answers on disk, as they arrive: what was paid for once is not asked for again, whatever happens to the run.

One file of JSON lines for each teacher and its settings; every line is flushed to the disk before the next question
depends on it. A kill can tear the last line only, which is cut off when the file is opened again.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from edgeforge.core.errors import EnvironmentProblem
from edgeforge.core.spec import canonical_json, digest_of


class Journal:
    """The answers of one teacher; open it with `opened`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._answers: dict[str, Mapping[str, Any]] = dict(_lines(path)) if path.exists() else {}
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def get(self, key: str) -> Mapping[str, Any] | None:
        """The answer under that key, or None."""
        return self._answers.get(key)

    def append(self, key: str, answer: Mapping[str, Any]) -> None:
        """Put an answer on the disk; from any thread. Raises EnvironmentProblem where the disk refuses."""
        line = canonical_json({"key": key, **answer}).encode() + b"\n"
        with self._lock:
            self._write(line)
            self._answers[key] = answer

    def _write(self, line: bytes) -> None:
        before = os.fstat(self._file).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)  # half a line would spoil the next one
            raise EnvironmentProblem(
                f"an answer cannot be kept: {error.strerror}", where=str(self.path), remedy="free some space"
            ) from error

    def close(self) -> None:
        os.close(self._file)


@contextmanager
def opened(folder: Path, teacher: Mapping[str, Any], waiting: Callable[[], None]) -> Iterator[Journal]:
    """The journal of a teacher, described by its settings, for this process alone.

    `waiting` is called where another process has it: two runs that ask the same must not both pay.
    Raises EnvironmentProblem where the folder cannot be written, or the file was changed by something else.
    """
    path = folder / f"{digest_of(teacher)[:16]}.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
        try:
            journal = Journal(path)
            if os.fstat(journal._file).st_size == 0:
                journal._write(canonical_json({"teacher": dict(teacher)}).encode() + b"\n")
                _flush(folder)
            try:
                yield journal
            finally:
                journal.close()
        finally:
            lock.release()
    except OSError as error:
        raise EnvironmentProblem(
            f"answers cannot be kept here: {error.strerror}", where=str(path), remedy="set `journal` to another folder"
        ) from error


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The answers in a file by their keys, after its torn last line, if any, was cut off."""
    with path.open("r+b") as file:
        whole = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            try:
                answer = json.loads(line)
                if "teacher" not in answer:
                    yield answer.pop("key"), answer
            except (ValueError, AttributeError, TypeError, KeyError) as error:
                raise EnvironmentProblem(
                    "this line is no answer",
                    where=f"{path}:{number}",
                    remedy="remove it; its answer is asked for again",
                ) from error
        file.truncate(whole)


def _flush(folder: Path) -> None:
    if os.name == "nt":
        return  # Windows cannot open folders
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
