"""Nothing that is tested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from edgeforge.filters import Context, Filter, Sample
from edgeforge.filters._words import runs, words

COMMON_TEXTS, COMMON_SHARE = 5, 0.05
"""A run in more test texts than both of these allow is common."""


class OverlapWithTest(Filter):
    """Leave out what repeats the test part: the same words, or many runs of them.

    Looked at are prompt, answer, and both together. Of texts shorter than a run, only those count that are a whole
    text of the test part. Runs that many test texts have, such as the same request before every question, are nobody's
    in particular and do not count.
    """

    kind: Literal["overlap_with_test"] = "overlap_with_test"
    share: float = Field(default=0.5, gt=0, le=1, description="Most of a text's runs that the test part may have.")
    words: int = Field(default=5, ge=2, description="Words in a run.")

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.filters._words",)

    def reasons(self, samples: Sequence[Sample], context: Context) -> list[str | None]:
        whole: set[tuple[str, ...]] = set()
        holders: Counter[Hashable] = Counter()
        for text in context.tested:
            said = words(text)
            if said:
                whole.add(tuple(said))
            if len(said) >= self.words:
                holders.update(runs(said, self.words))
        most = max(COMMON_TEXTS, COMMON_SHARE * len(context.tested))
        return [self._reason(sample, whole, holders, most) for sample in samples]

    def _reason(
        self, sample: Sample, whole: set[tuple[str, ...]], holders: Mapping[Hashable, int], most: float
    ) -> str | None:
        parts = [words(sample.part("both"))]
        if sample.prompt:
            # A short answer ("yes", "42") may well be that of a test question; its question may not.
            answer = words(sample.text)
            parts += [words(sample.prompt), *([answer] if len(answer) >= self.words else [])]
        if any(tuple(said) in whole for said in parts):
            return "a text of the test part"
        for said in parts:
            own = [run for run in runs(said, self.words) if holders.get(run, 0) <= most]
            shared = sum(run in holders for run in own)
            if len(said) >= self.words and shared and shared >= self.share * len(own):
                return "repeats the test part"
        return None
