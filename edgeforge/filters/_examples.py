"""Examples of a spec out of what a teacher wrote: read, judged by the spec, then filtered like any texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeforge.data._spec import DataSpec, Example, Judged, as_text
from edgeforge.filters import Context, Filter, Sample, Yield, sieve, yield_of


@dataclass(frozen=True)
class Examples:
    """What is kept, with the position of each in what was written; what every step left out; how all were judged."""

    kept: tuple[Example, ...]
    positions: tuple[int, ...]
    yields: tuple[Yield, ...]
    judged: tuple[Judged, ...]
    """Of everything that was written: `edgeforge.data._spec.pass_rates` counts it."""


def examples_in(
    texts: Sequence[str],
    spec: DataSpec,
    *,
    groups: Sequence[int],
    filters: Sequence[Filter],
    context: Context,
) -> Examples:
    """`groups` is equal for answers to one prompt. Filters see the input as prompt and the output as text.

    Raises DataError as the filters do, and where a user's function fails.
    """
    read = [spec.parse(text) for text in texts]
    judged = [spec.judge(example) for example in read]
    reasons = [next((f"{name}: {why}" for name, why in one.items() if why is not None), None) for one in judged]
    valid = [position for position, reason in enumerate(reasons) if reason is None]
    samples = []
    for position in valid:
        example = read[position]
        assert example is not None
        samples.append(Sample(as_text(example.output), as_text(example.input), groups[position], spec.label(example)))
    kept, yields = sieve(filters, samples, context)
    positions = tuple(valid[place] for place in kept)
    found = tuple(example for position in positions if (example := read[position]) is not None)
    return Examples(found, positions, (yield_of("spec", reasons, texts), *yields), tuple(judged))
