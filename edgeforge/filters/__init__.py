"""What is kept of texts that a teacher wrote: one file per filter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgeforge.core.errors import DataError
from edgeforge.core.spec import Spec

EXAMPLES, EXAMPLE_CHARACTERS = 3, 200
"""Of what a filter left out, for each reason, in a report."""

Part = Literal["prompt", "answer", "both"]


@dataclass(frozen=True)
class Sample:
    """A text and what is known of it.

    `prompt` is the question it answers, `group` is equal for answers to one prompt, `label` is its class, where it has
    one, and `expected` the right answer, where it is known.
    """

    text: str
    prompt: str = ""
    group: int = 0
    label: str | None = None
    expected: str | None = None

    def part(self, part: Part) -> str:
        """What a filter looks at."""
        if part == "both":
            return f"{self.prompt}\n{self.text}" if self.prompt else self.text
        return self.prompt if part == "prompt" else self.text


@dataclass(frozen=True)
class Context:
    """What filters may ask for: the texts of the test part, and the seed of random choices.

    Where the teacher made up the questions as well, `again` lets it answer each of them anew: for each sample all
    answers to its question, its own first.
    """

    tested: Sequence[str] = ()
    seed: int = 0
    again: Callable[[Sequence[Sample]], Sequence[Sequence[Sample]]] | None = None


@dataclass(frozen=True)
class Yield:
    """What one filter did: how many came in and out, how many were left out for each reason, and a few of them."""

    filter: str
    into: int
    out: int
    reasons: Mapping[str, int]
    examples: Mapping[str, Sequence[str]]

    def as_json(self) -> dict[str, Any]:
        """For a report."""
        return {
            "filter": self.filter,
            "in": self.into,
            "out": self.out,
            "reasons": dict(self.reasons),
            "examples": {reason: list(texts) for reason, texts in self.examples.items()},
        }


class Filter(Spec):
    """Base of every filter."""

    kind: str

    def reasons(self, samples: Sequence[Sample], context: Context) -> list[str | None]:
        """For each sample why it is left out, in the same words for all alike; None where it is kept.

        Raises DataError where it cannot tell.
        """
        raise NotImplementedError


def sieve(filters: Sequence[Filter], samples: Sequence[Sample], context: Context) -> tuple[list[int], list[Yield]]:
    """The positions of the samples that pass every filter, in order, and what each filter did.

    A filter sees what the ones before it kept. Raises DataError as they do.
    """
    kept, yields = list(range(len(samples))), []
    for one in filters:
        reasons = one.reasons([samples[position] for position in kept], context)
        yields.append(yield_of(one.kind, reasons, [samples[position].text for position in kept]))
        kept = [position for position, reason in zip(kept, reasons, strict=True) if reason is None]
    return kept, yields


def yield_of(name: str, reasons: Sequence[str | None], texts: Sequence[str]) -> Yield:
    """What happened to `texts`, each left out for its reason, or kept where that is None."""
    left_out: dict[str, list[str]] = defaultdict(list)
    for reason, text in zip(reasons, texts, strict=True):
        if reason is not None:
            left_out[reason].append(text)
    by_count = sorted(left_out.items(), key=lambda item: (-len(item[1]), item[0]))
    return Yield(
        name,
        len(texts),
        len(texts) - sum(map(len, left_out.values())),
        {reason: len(found) for reason, found in by_count},
        {reason: [text[:EXAMPLE_CHARACTERS] for text in found[:EXAMPLES]] for reason, found in by_count},
    )


def refuse_empty(kept: Sequence[Any], yields: Sequence[Yield], where: str) -> None:
    """Raise DataError, with what each filter left out and why, where nothing is kept."""
    if kept:
        return
    said = [
        f"{one.filter} {one.into - one.out} of {one.into} ({', '.join(f'{n} {why}' for why, n in one.reasons.items())})"
        for one in yields
        if one.out < one.into
    ]
    raise DataError(
        f"nothing that was written is kept; left out by {'; '.join(said)}" if said else "nothing was written",
        where=where,
        remedy="loosen the filter that left out most, ask for more samples, or ask another teacher",
    )
