"""Injected faults: one small function each, in a registry that the tests and the table read."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fault:
    """One way to break a case.

    `cases` are the clean ones it is injected into; `sizes` a ladder from gross to small, every one of which must be
    caught (None: there is no size to it); `unit` says what a size is. `quick` ones are in the default suite.
    """

    name: str
    kind: str
    cases: tuple[str, ...]
    sizes: tuple[Any, ...]
    unit: str
    inject: Callable[..., list[str] | None]
    quick: bool
    says: str


FAULTS: dict[str, Fault] = {}


def fault(
    kind: str, *cases: str, sizes: tuple[Any, ...] = (None,), unit: str = "", quick: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register ``inject(case, size)``; its docstring says what goes wrong.

    What it returns, if anything, are the names of what caught the fault before verification was reached.
    """

    def register(inject: Callable[..., Any]) -> Callable[..., Any]:
        name = inject.__name__
        assert name not in FAULTS, name
        assert inject.__doc__, name
        FAULTS[name] = Fault(name, kind, cases, sizes, unit, inject, quick, inspect.cleandoc(inject.__doc__))
        return inject

    return register
