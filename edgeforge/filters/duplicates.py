"""Each text once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from edgeforge.filters import Context, Filter, Part, Sample
from edgeforge.filters._words import words


class Duplicates(Filter):
    """Leave out what was there before, but for case, blanks and punctuation."""

    kind: Literal["duplicates"] = "duplicates"
    of: Part = Field(default="both", description="What must differ.")

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.filters._words",)

    def reasons(self, samples: Sequence[Sample], context: Context) -> list[str | None]:
        seen: set[tuple[str, ...] | str] = set()
        found: list[str | None] = []
        for sample in samples:
            text = sample.part(self.of)
            key = tuple(words(text)) or text.strip()
            found.append("there already" if key in seen else None)
            seen.add(key)
        return found
