"""A number with its unit, its raw samples and where it came from."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import Literal

from edgeforge.core.spec import Spec

Origin = Literal["measured", "emulated", "estimated"]
Difference = Literal["faster", "slower", "no difference shown"]

SAME_FILE_MOVES = 0.02
"""How far apart two copies of one file may be timed in one process without anything being called different."""


class Measurement(Spec):
    """One quantity, on one device and runtime, with its samples. `origin` is shown wherever the number is."""

    metric: str
    device: str
    runtime: str
    origin: Origin
    samples: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.samples)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def p90(self) -> float:
        return percentile(self.samples, 90)

    @property
    def ci95(self) -> tuple[float, float]:
        """Bootstrap 95 % interval of the median."""
        return bootstrap_median(self.samples)


def difference(ci95: tuple[float, float]) -> Difference:
    """What the 95 % interval of a ratio of times, before / after, shows.

    The rounds of one process say how sure its ratio is, and nothing of where it happened to put each file in memory,
    which stays the same for all of them: two copies of one file differ in one process, and the other way about in the
    next (Mytkowicz et al., 2009, "Producing Wrong Data Without Doing Anything Obviously Wrong!"; Kalibera and Jones,
    2013, "Rigorous Benchmarking in Reasonable Time"). So the whole interval must be further from 1 than
    `SAME_FILE_MOVES`; a smaller difference is not shown by one process, however many its rounds.
    `benchmarks/honest_timing` counts how often that is wrong.
    """
    low, high = ci95
    if low > 1 + SAME_FILE_MOVES:
        return "faster"
    return "slower" if high < 1 / (1 + SAME_FILE_MOVES) else "no difference shown"


def percentile(samples: Sequence[float], q: float) -> float:
    """Linear-interpolated percentile, q in [0, 100] (the definition numpy uses by default)."""
    ordered = sorted(samples)
    position = (len(ordered) - 1) * q / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def bootstrap_median(samples: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Percentile-bootstrap 95 % interval of the median (Efron, 1979)."""
    if len(samples) == 1:
        return (samples[0], samples[0])
    rng = random.Random(seed)
    medians = sorted(statistics.median(rng.choices(samples, k=len(samples))) for _ in range(resamples))
    return (percentile(medians, 2.5), percentile(medians, 97.5))
