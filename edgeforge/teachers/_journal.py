"""Answers on disk, as they arrive: what was paid for once is not asked for again, whatever happens to the run.

One file of JSON lines for each teacher and its settings; every line is flushed to the disk before the next question
depends on it. A kill can tear the last line only, which is cut off when the file is opened again.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from edgeforge.core.errors import EnvironmentProblem
from edgeforge.core.spec import canonical_json, digest_of

if TYPE_CHECKING:
    from typing import Self

FLUSH_SECONDS = 30.0


def in_user_data() -> Path:
    """Where answers are kept that the user puts nowhere else: not in the store, which may be emptied."""
    from platformdirs import user_data_path

    return user_data_path("edgeforge", appauthor=False) / "answers"


class Journal:
    """The answers of one teacher; open it with `opened`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self.answers: dict[str, Mapping[str, Any]] = dict(_lines(path)) if path.exists() else {}
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def get(self, key: str) -> Mapping[str, Any] | None:
        """The answer under that key, or None."""
        return self.answers.get(key)

    def append(self, key: str, answer: Mapping[str, Any]) -> None:
        """Put an answer on the disk; from any thread. Raises EnvironmentProblem where the disk refuses."""
        self.extend({key: answer})

    def extend(self, answers: Mapping[str, Mapping[str, Any]]) -> None:
        """The same for several answers by their keys, at the price of one."""
        lines = b"".join(canonical_json({"key": key, **answer}).encode() + b"\n" for key, answer in answers.items())
        with self._lock:
            self._write(lines)
            self.answers.update(answers)

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
    path = _path(folder, teacher)
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


class Backlog:
    """Answers that cost time and no money: on the disk every `FLUSH_SECONDS`, and where the work breaks off.

    What was done sooner and well leaves no file. Use it as a context; `put` and `get` are for one thread.
    """

    def __init__(self, folder: Path, teacher: Mapping[str, Any]) -> None:
        self._folder, self._teacher, self._saved = folder, teacher, time.monotonic()
        self._new: dict[str, Mapping[str, Any]] = {}
        self._known: dict[str, Mapping[str, Any]] = {}
        if _path(folder, teacher).exists():
            with self._opened() as journal:
                self._known = dict(journal.answers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._flush()

    def get(self, key: str) -> Mapping[str, Any] | None:
        """The answer under that key, or None."""
        return self._known.get(key)

    def put(self, key: str, answer: Mapping[str, Any]) -> None:
        """Remember an answer. Raises EnvironmentProblem where the disk refuses."""
        self._known[key] = self._new[key] = answer
        if time.monotonic() - self._saved >= FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        if self._new:
            with self._opened() as journal:
                journal.extend(self._new)
        self._new, self._saved = {}, time.monotonic()

    def _opened(self) -> AbstractContextManager[Journal]:
        return opened(self._folder, self._teacher, lambda: None)


def _path(folder: Path, teacher: Mapping[str, Any]) -> Path:
    return folder / f"{digest_of(teacher)[:16]}.jsonl"


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
