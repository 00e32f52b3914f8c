"""The same number."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import ClassVar, Literal

from pydantic import Field

from edgeforge.checkers import Checker
from edgeforge.checkers._expected import expected_of
from edgeforge.core.errors import DataError

MOST_DIGITS = 1000
"""A longer number is no answer, and an exponent beyond it fills the memory."""

_NUMBER = re.compile(
    r"(?P<sign>[-+\u2212]?)\s*[$€£]?\s*(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]*\.?[0-9]+|[0-9]+\.)"
    r"(?:[eE](?P<exponent>[-+]?[0-9]{1,3}))?(?:\s*/\s*(?P<below>[0-9]+))?(?P<percent>\s*%)?"
)


class Numeric(Checker):
    """The answer is the expected number, however it is written: `1,234.50`, `$1234.5`, `1.2345e3`, `2469/2`.

    Compared are exact fractions, so that numbers of any length are told apart. A percent sign makes no difference. An
    answer may have words after its number (`12 apples`) and none before it: mark it with `answer` where it has.
    """

    kind: Literal["numeric"] = "numeric"
    tolerance: float = Field(default=0.0, ge=0, description="Largest difference.")
    relative_tolerance: float = Field(
        default=0.0, ge=0, description="Largest difference as a share of the expected number; the larger limit holds."
    )

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.checkers._expected",)

    def judge(self, answer: str, expected: str | None, question: str) -> str | None:
        said = expected_of(expected, question)
        wanted, found = number(said), number(answer)
        if wanted is None:
            raise DataError(
                f"the expected answer is no number: {said[:60]!r}", remedy="correct it, or use the checker `exact`"
            )
        if found is None:
            return "no number"
        limit = max(Fraction(self.tolerance), Fraction(self.relative_tolerance) * abs(wanted))
        return None if abs(found - wanted) <= limit else "another number than expected"


def number(text: str) -> Fraction | None:
    """The number at the beginning of a text, exactly; None where there is none."""
    found = _NUMBER.match(text.strip())
    if found is None or len(found["digits"]) > MOST_DIGITS or len(found["below"] or "") > MOST_DIGITS:
        return None
    if re.match(r"[0-9.,]*[0-9]|[^\W\d]", text.strip()[found.end() :]):
        return None  # `12,34`, `3x`, `1.2.3`: something else than this number is meant
    value = Fraction(found["digits"].replace(",", "").rstrip(".")) * Fraction(10) ** int(found["exponent"] or 0)
    if found["below"] is not None:
        if int(found["below"]) == 0:
            return None
        value /= int(found["below"])
    return -value if found["sign"] in ("-", "\u2212") else value
