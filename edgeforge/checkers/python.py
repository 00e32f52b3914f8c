"""A user's own judgement."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

from edgeforge.checkers import Checker
from edgeforge.core.errors import DataError
from edgeforge.core.user_code import UserCode


class Python(Checker, UserCode):
    """A function of yours: ``def check(answer: str, expected: str | None, question: str) -> bool | str``.

    It returns true or false, or says in a few words why the answer is not right (an empty text: it is). Reasons that
    are the same for many answers make a readable table. A function that raises stops the work: a checker that fails
    must not pass for one that rejects.
    """

    kind: Literal["python"] = "python"

    @cached_property
    def _check(self) -> Callable[..., Any]:
        return self.load()

    def judge(self, answer: str, expected: str | None, question: str) -> str | None:
        said = self._check(answer, expected, question)
        if isinstance(said, bool):
            return None if said else "rejected"
        if isinstance(said, str):
            return said or None
        raise DataError(
            f"the checker returned {said!r}", where=self.function, remedy="return true, false, or why not, as a text"
        )
