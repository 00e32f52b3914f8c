"""About as many samples of every class."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from edgeforge.core.seeds import derive
from edgeforge.filters import Context, Filter, Sample


class LabelBalance(Filter):
    """Leave out what has no label or another than the known ones, and of frequent labels what is too much.

    A label that no sample has is not made up for. Which samples of a frequent label stay is drawn at random.
    """

    kind: Literal["label_balance"] = "label_balance"
    labels: tuple[str, ...] | None = Field(default=None, min_length=1, description="The labels; absent: any.")
    ratio: float | None = Field(
        default=2.0, ge=1, description="Most samples of a label for each of the rarest label's; null: any number."
    )

    def reasons(self, samples: Sequence[Sample], context: Context) -> list[str | None]:
        found: list[str | None] = [self._off_label(sample.label) for sample in samples]
        places: dict[str, list[int]] = defaultdict(list)
        for position, (sample, reason) in enumerate(zip(samples, found, strict=True)):
            if reason is None and sample.label is not None:
                places[sample.label].append(position)
        if self.ratio is None or not places:
            return found
        most = int(self.ratio * min(map(len, places.values())))
        for label, positions in places.items():
            draw = random.Random(derive(context.seed, "label_balance", label))
            for position in draw.sample(positions, max(0, len(positions) - most)):
                found[position] = f"too many of '{label}'"
        return found

    def _off_label(self, label: str | None) -> str | None:
        if label is None:
            return "no label"
        return None if self.labels is None or label in self.labels else "none of the labels"
