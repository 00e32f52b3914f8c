"""Neither too short nor too long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from edgeforge.filters import Context, Filter, Part, Sample

if TYPE_CHECKING:
    from typing import Self


class Length(Filter):
    """Keep texts of a length, in words (between blanks) or characters."""

    kind: Literal["length"] = "length"
    least: int = Field(default=1, ge=0, description="Shortest.")
    most: int | None = Field(default=None, ge=1, description="Longest; absent: any.")
    unit: Literal["words", "characters"] = Field(default="words", description="What is counted.")
    of: Part = Field(default="answer", description="Where.")

    @model_validator(mode="after")
    def _some_fit(self) -> Self:
        if self.most is not None and self.most < self.least:
            raise ValueError(f"no text is at least {self.least} and at most {self.most} long")
        return self

    def reasons(self, samples: Sequence[Sample], context: Context) -> list[str | None]:
        return [self._reason(sample.part(self.of)) for sample in samples]

    def _reason(self, text: str) -> str | None:
        found = len(text.split()) if self.unit == "words" else len(text.strip())
        if found < self.least:
            return "too short"
        return "too long" if self.most is not None and found > self.most else None
