"""From numbers to pixels: an axis with round ticks, linear or logarithmic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LOG_FROM = 4.0
"""Values that span more than this factor are shown on a logarithmic axis."""


@dataclass(frozen=True)
class Axis:
    """Maps values in [low, high] to pixels [start, end]; `end` may be the smaller one (SVG's y grows downwards)."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(item) if self.log else item for item in (self.low, self.high, value))
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 2)

    def ticks(self) -> list[float]:
        """Round values inside the axis: 1, 2, 5 times powers of ten (logarithmic), or even steps."""
        candidates = _log_candidates(self.low, self.high) if self.log else _even_candidates(self.low, self.high)
        slack = 1e-9 * (self.high - self.low)
        low, high = (self.low * (1 - 1e-9), self.high) if self.log else (self.low - slack, self.high + slack)
        return [float(f"{value:.10g}") for value in candidates if low <= value <= high]


def axis_for(values: Sequence[float], pixels: tuple[float, float], *, log: bool | None = None) -> Axis:
    """An axis around `values` (all finite; positive for a logarithmic one), with a little room at both ends."""
    low, high = min(values), max(values)
    if log is None:
        log = low > 0 and high / low > LOG_FROM
    if log:
        room = max((high / low) ** 0.12, 1.15)
        return Axis(low / room, high * room, *pixels, log=True)
    room = (high - low) * 0.14 or abs(high) * 0.05 or 1.0
    return Axis(low - room, high + room, *pixels)


def _log_candidates(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if last - first > 4:
        step = math.ceil((last - first) / 8)
        return [10.0**exponent for exponent in range(first, last + 1, step)]
    return [digit * 10.0**exponent for exponent in range(first, last + 1) for digit in (1, 2, 5)]


def _even_candidates(low: float, high: float) -> list[float]:
    step = _round_step((high - low) / 3.5)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, first + 12)]


def _round_step(most: float) -> float:
    """The largest of 1, 2, 2.5, 5 times a power of ten that is at most `most`."""
    power = 10.0 ** math.floor(math.log10(most))
    return float(next(digit * power for digit in (5, 2.5, 2, 1) if digit * power <= most * (1 + 1e-9)))
