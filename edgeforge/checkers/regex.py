"""An answer of a given form."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from edgeforge.checkers import Checker, Pattern
from edgeforge.checkers._expected import expected_of

if TYPE_CHECKING:
    from typing import Self


class Regex(Checker):
    """The whole answer matches a regular expression; with `group`, what that group holds is the expected answer."""

    kind: Literal["regex"] = "regex"
    pattern: Pattern = Field(description="A regular expression for the whole answer; `.` is any character.")
    group: int | str | None = Field(
        default=None, description="The group, by number or name, that must be the expected answer; absent: none."
    )

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.checkers._expected",)

    @model_validator(mode="after")
    def _group_exists(self) -> Self:
        compiled = re.compile(self.pattern)
        known = [*range(compiled.groups + 1), *compiled.groupindex]
        if self.group is not None and self.group not in known:
            raise ValueError(f"the pattern has no group {self.group!r}; it has {', '.join(map(str, known))}")
        return self

    def judge(self, answer: str, expected: str | None, question: str) -> str | None:
        found = re.compile(self.pattern, re.DOTALL).fullmatch(answer)
        if found is None:
            return "not of the form"
        if self.group is None:
            return None
        same = (found[self.group] or "").strip() == expected_of(expected, question).strip()
        return None if same else "another answer than expected"
