"""Which test samples belong to which slice, so that a loss on some of them is not lost in the mean of all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.core.spec import Spec
from edgeforge.core.stage import Job, Stage
from edgeforge.core.task import Samples, Task

if TYPE_CHECKING:
    from typing import Self

MEMBERS = "members.npy"
MOST_VALUES = 12
"""Values of a column that are slices of their own; what is left are `others`."""
OTHERS = "others"
IMAGES_AT_ONCE = 256
_READS: Mapping[str, str | None] = {"column": None, "pattern": "texts", "words": "texts", "brightness": "images"}
"""What each rule looks at; a column may belong to anything."""


class Slice(Spec):
    """One way of cutting the test split into slices, by a column or by a rule."""

    name: str | None = Field(default=None, min_length=1, description="What the report calls it; absent: its rule.")
    column: str | None = Field(
        default=None,
        min_length=1,
        description="A column of the data (jsonl, csv, hub): a slice for each of its values.",
    )
    pattern: str | None = Field(
        default=None, min_length=1, description="A regular expression: texts in which it is found, and the others."
    )
    words: tuple[Annotated[int, Field(gt=0)], ...] | None = Field(
        default=None, min_length=1, description="Bounds between slices of texts by their number of words."
    )
    brightness: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = Field(
        default=None, min_length=1, description="Bounds between slices of images by their mean, black 0 and white 1."
    )

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"this is no regular expression: {error}") from error
        return value

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        given = [name for name in _READS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a slice has one of {', '.join(_READS)}")
        bounds = self.words or self.brightness or ()
        if list(bounds) != sorted(set(bounds)):
            raise ValueError(f"the bounds of `{given[0]}` must rise")
        return self

    @property
    def rule(self) -> str:
        """Which of the rules it is."""
        return next(name for name in _READS if getattr(self, name) is not None)

    @property
    def title(self) -> str:
        """What the report calls it."""
        said = {"column": self.column, "pattern": f"/{self.pattern}/"}
        return self.name or said.get(self.rule) or self.rule

    def check(self, task: Task, where: str) -> None:
        """Refuse a rule that does not look at what the task reads. Raises IncompatiblePlanError."""
        wanted = _READS[self.rule]
        if wanted is not None and wanted != task.reads:
            raise IncompatiblePlanError(
                f"`{self.rule}` is a rule for {wanted}, and the task reads {task.reads}",
                where=where,
                remedy=f"use one of {', '.join(name for name, reads in _READS.items() if reads in (None, task.reads))}",
            )

    def cut(self, samples: Samples) -> tuple[list[str], np.ndarray]:
        """The groups' names, and for each sample its group's position, int64, (N,). Raises DataError."""
        if self.column is not None:
            return _by_value(samples.column(self.column))
        if self.pattern is not None:
            found = re.compile(self.pattern)
            return ["found", "not found"], np.array([found.search(text) is None for text in samples.texts], np.int64)
        if self.words is not None:
            counts = np.array([len(text.split()) for text in samples.texts], np.int64)
            return _between(self.words, lambda low, high: f"{low} to {high - 1}"), np.digitize(counts, self.words)
        assert self.brightness is not None
        return _between(self.brightness, lambda low, high: f"{low:g} to {high:g}"), np.digitize(
            _brightness(samples), self.brightness
        )


class Slices(Stage):
    """Cut the test split as the pipeline's `slices` say. It reads data only: no model depends on it.

    Facts: `slices`, each with `rule` and the names of its `groups`; `members.npy` holds, for each of them and each
    sample, the position of the sample's group.
    """

    kind: Literal["slices"] = "slices"
    slices: tuple[Slice, ...] = Field(min_length=1, description="How the test split is cut.")

    accepts: ClassVar[frozenset[str]] = frozenset()
    makes: ClassVar[str] = "measurements"
    in_chain: ClassVar[bool] = False

    def run(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        samples = job.task.tested()
        cuts = [one.cut(samples) for one in self.slices]
        np.save(job.folder / MEMBERS, np.stack([members.astype(np.int32) for _, members in cuts]))
        said = zip(self.slices, cuts, strict=True)
        return {"slices": [{"rule": one.title, "groups": names} for one, (names, _) in said]}


def _by_value(values: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The most frequent values first, equal counts by name."""
    counts = Counter(values)
    names = sorted(counts, key=lambda value: (-counts[value], value))
    if len(names) > MOST_VALUES:
        names = [*names[: MOST_VALUES - 1], OTHERS]
    numbers = {name: number for number, name in enumerate(names)}
    return names, np.array([numbers.get(value, len(names) - 1) for value in values], np.int64)


def _between(bounds: Sequence[float], middle: Callable[[Any, Any], str]) -> list[str]:
    inner = [middle(low, high) for low, high in pairwise(bounds)]
    return [f"below {bounds[0]:g}", *inner, f"{bounds[-1]:g} and above"]


def _brightness(samples: Samples) -> np.ndarray:
    """The mean over pixels and channels, in [0, 1], (N,)."""
    means = [
        samples.images[range(start, min(samples.size, start + IMAGES_AT_ONCE))].mean(axis=(1, 2, 3), dtype=np.float64)
        for start in range(0, samples.size, IMAGES_AT_ONCE)
    ]
    found: np.ndarray = np.concatenate(means) / 255
    return found
