"""Right answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from edgeforge.checkers import Checker
from edgeforge.core.kinds import OneOf
from edgeforge.filters import Context, Filter, Sample


class Verified(Filter):
    """Keep answers, and traces that lead to one, that a checker finds right (rejection sampling).

    Several right ones may be kept for a prompt: different ways to the same answer teach more than one of them.
    """

    kind: Literal["verified"] = "verified"
    checker: Annotated[Checker, OneOf("edgeforge.checkers")] = Field(description="Who judges.")
    keep: int | None = Field(default=None, ge=1, description="Most right answers kept for a prompt; absent: all.")

    def reasons(self, samples: Sequence[Sample], context: Context) -> list[str | None]:
        kept: Counter[int] = Counter()
        found: list[str | None] = []
        for sample in samples:
            verdict = self.checker.verify(sample.text, sample.expected, sample.prompt)
            reason = None if verdict.passed else verdict.reason
            if reason is None and self.keep is not None and kept[sample.group] >= self.keep:
                reason = "enough for this prompt"
            kept[sample.group] += reason is None
            found.append(reason)
        return found
