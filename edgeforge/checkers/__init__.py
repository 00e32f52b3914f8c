"""Is an answer right: one file per way to find out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from edgeforge.core.spec import Spec

NO_ANSWER = "no marked answer"


def _compiles(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"this is no regular expression: {error}") from error
    return value


Pattern = Annotated[str, AfterValidator(_compiles)]
"""A regular expression, as Python's `re` has them."""


class Marked(Spec):
    """Where the answer stands in a text that holds more, such as a reasoning trace."""

    pattern: Pattern = Field(
        default=r"Answer:\s*(.*)",
        description="A regular expression; its first group is the answer, or all of it where it has none.",
    )
    take: Literal["first", "last"] = Field(default="last", description="Which one, where it matches several times.")

    def find(self, text: str) -> str | None:
        """The answer without blanks around it; None where nothing is marked, or nothing stands there."""
        matches = list(re.finditer(self.pattern, text))
        if not matches:
            return None
        match = matches[0 if self.take == "first" else -1]
        return (match[1 if match.re.groups else 0] or "").strip() or None


@dataclass(frozen=True)
class Verdict:
    """`reason` says in a few words, the same for all answers alike, why an answer did not pass; `answer` is what was
    looked at, None where none was found."""

    passed: bool
    reason: str = ""
    answer: str | None = None


class Checker(Spec):
    """Base of every checker."""

    kind: str
    answer: Marked | None = Field(
        default=None, description="Where the answer stands in the text; absent: the whole text is the answer."
    )

    def verify(self, text: str, expected: str | None = None, question: str = "") -> Verdict:
        """Judge the answer in `text` against `expected`; some need none. Raises DataError as `judge` does."""
        answer = text.strip() if self.answer is None else self.answer.find(text)
        if not answer:
            return Verdict(False, NO_ANSWER)
        reason = self.judge(answer, expected, question)
        return Verdict(reason is None, reason or "", answer)

    def judge(self, answer: str, expected: str | None, question: str) -> str | None:
        """Why `answer` is not right; None where it is.

        Raises DataError where `expected` is missing or unusable, or a user's function fails.
        """
        raise NotImplementedError
