"""llama.cpp's library, loaded once, its log kept from the terminal."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from edgeforge.core.extras import require

EXTRA = "llama"
DISTRIBUTION = "llama-cpp-python"

_ERROR, _CONTINUED = 4, 5  # of ggml.h
_heard: list[Log] = []


class Log:
    """What llama.cpp said while it was listened to."""

    def __init__(self) -> None:
        self._texts: list[tuple[int, str]] = []

    def add(self, level: int, text: str) -> None:
        """One piece of text, which may be a part of a line."""
        if level == _CONTINUED and self._texts:
            level = self._texts[-1][0]
        self._texts.append((level, text))

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(text for _, text in self._texts)

    def problem(self) -> str:
        """The first error, without the name of the C function that wrote it."""
        errors = "".join(text for level, text in self._texts if level == _ERROR).strip()
        if not errors:
            return "it does not say why"
        function, colon, said = errors.splitlines()[0].partition(": ")
        return said.strip() if colon and " " not in function else errors.splitlines()[0]


@functools.cache
def library() -> ModuleType:
    """The module `llama_cpp`. Raises MissingExtraError where it is not installed."""
    llama = require("llama_cpp", EXTRA)
    llama.llama_log_set(_callback(llama), None)
    llama.llama_backend_init()
    return llama


@functools.cache
def _callback(llama: ModuleType) -> object:
    """The function that llama.cpp calls; kept for good, for the library holds nothing but its address."""

    def hear(level: int, text: bytes, _: object) -> None:
        for log in _heard:
            log.add(level, text.decode("utf-8", "replace"))

    callback: object = llama.llama_log_callback(hear)
    return callback


@contextmanager
def listening() -> Iterator[Log]:
    """What llama.cpp says meanwhile, in this thread or another."""
    log = Log()
    llama = library()
    # Whoever else uses the library in this process may have set a function of its own, which may be gone by now.
    llama.llama_log_set(_callback(llama), None)
    _heard.append(log)
    try:
        yield log
    finally:
        _heard.remove(log)
