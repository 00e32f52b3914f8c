"""What an answer is compared with."""

from __future__ import annotations

from edgeforge.core.errors import DataError


def expected_of(expected: str | None, question: str) -> str:
    """`expected`, where it is there. Raises DataError."""
    if expected is None:
        raise DataError(
            f"no answer is known to compare with, for the question {question[:60]!r}",
            remedy="give the expected answer with every question, or use a checker that needs none: `python`",
        )
    return expected
