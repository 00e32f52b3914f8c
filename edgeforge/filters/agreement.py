"""Answers that several samples agree on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import ClassVar, Literal

from pydantic import Field

from edgeforge.checkers import NO_ANSWER, Marked
from edgeforge.checkers.numeric import number
from edgeforge.filters import Context, Filter, Sample
from edgeforge.filters._words import words


class Agreement(Filter):
    """Keep the answers to a prompt that most of its samples give (Wang et al., 2022, self-consistency).

    Compared are labels where samples have them, else answers: as numbers where both are, else as words. It needs
    several samples of a prompt, and no known answer. Of a `spec` every example is a question of its own: the stage's
    `opinions` say how often the teacher answers it anew, and an example is kept whose output most of all answers give.
    """

    kind: Literal["agreement"] = "agreement"
    answer: Marked | None = Field(
        default=None, description="Where the answer stands in the text; absent: the whole text is the answer."
    )
    share: float = Field(default=0.5, gt=0, le=1, description="Least share of a prompt's samples that must agree.")
    at_least: int = Field(default=2, ge=2, description="Least number of samples that must agree.")
    keep: int | None = Field(default=None, ge=1, description="Most samples kept for a prompt; absent: all that agree.")

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.filters._words",)

    def reasons(self, samples: Sequence[Sample], context: Context) -> list[str | None]:
        if context.again is not None:
            return [self._seconded(answers) for answers in context.again(samples)]
        groups: dict[int, list[int]] = defaultdict(list)
        for position, sample in enumerate(samples):
            groups[sample.group].append(position)
        found: list[str | None] = [None] * len(samples)
        for positions in groups.values():
            answers = {position: self._answer(samples[position]) for position in positions}
            chosen = self._chosen(list(answers.values()))
            kept = 0
            for position, answer in answers.items():
                found[position] = self._reason(answer, chosen, kept)
                kept += found[position] is None
        return found

    def _seconded(self, samples: Sequence[Sample]) -> str | None:
        """Why the first of several answers to one question is left out; None where it is kept."""
        answers = [self._answer(sample) for sample in samples]
        return self._reason(answers[0], self._chosen(answers), kept=0)

    def _reason(self, answer: Hashable | None, chosen: Hashable | None, kept: int) -> str | None:
        if answer is None:
            return NO_ANSWER
        if chosen is None:
            return "the samples do not agree"
        if answer != chosen:
            return "another answer than most"
        return "enough for this prompt" if self.keep is not None and kept >= self.keep else None

    def _chosen(self, answers: Sequence[Hashable | None]) -> Hashable | None:
        """The answer that enough give and no other as often; None where there is none."""
        ranked = Counter(answer for answer in answers if answer is not None).most_common(2)
        if not ranked or ranked[0][1] < max(self.at_least, self.share * len(answers)):
            return None
        return None if len(ranked) == 2 and ranked[1][1] == ranked[0][1] else ranked[0][0]

    def _answer(self, sample: Sample) -> Hashable | None:
        if sample.label is not None:
            return sample.label
        text = sample.text.strip() if self.answer is None else self.answer.find(sample.text)
        if not text:
            return None
        value = number(text)
        return tuple(words(text)) or text if value is None else value
