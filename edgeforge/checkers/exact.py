"""The same words."""

from __future__ import annotations

import unicodedata
from typing import ClassVar, Literal

from pydantic import Field

from edgeforge.checkers import Checker
from edgeforge.checkers._expected import expected_of


class Exact(Checker):
    """The answer is the expected one. Blanks around it and runs of them make no difference."""

    kind: Literal["exact"] = "exact"
    ignore_case: bool = Field(default=False, description="Whether `Yes` is `yes`.")

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.checkers._expected",)

    def judge(self, answer: str, expected: str | None, question: str) -> str | None:
        same = self._plain(answer) == self._plain(expected_of(expected, question))
        return None if same else "another answer than expected"

    def _plain(self, text: str) -> str:
        plain = " ".join(unicodedata.normalize("NFC", text).split())
        return plain.casefold() if self.ignore_case else plain
