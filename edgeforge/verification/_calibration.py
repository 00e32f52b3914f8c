"""Whether ranges that a quantizer recorded are those of the model's values on real inputs.

A file can be right to the last bit and still have been calibrated on the wrong data: noise, images that nobody
normalised, one class. Then its steps are far from those that the validation samples themselves would ask for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from edgeforge.verification import Check

NAME = "ranges fit real inputs"

LOSS_DB = 30.0
"""How much more noise (dB) a recorded range may leave than rounding in steps that span just these samples. A single
outlier that calibration did not meet was seen to cost 15 dB."""

WIDEST = 8.0
"""Times the span of the samples; three of eight bits."""

MOST_CUT = {"minmax": 0.02, "percentile": 0.1, "entropy": 0.1}
"""Share of the numbers beyond a range. The two last methods cut off outliers on purpose."""


class Range:
    """One recorded range of a value: `low` to `high` in `levels` steps; scalars, or one per channel on axis 1."""

    def __init__(self, name: str, low: np.ndarray, high: np.ndarray, levels: int) -> None:
        self.name, self.low, self.high, self.levels = name, low, high, levels

    def problem(self, values: np.ndarray, method: str) -> str | None:
        """`values`: what the float model has there on real inputs, (N, ...)."""
        values = values.astype(np.float64)
        axes = tuple(axis for axis in range(values.ndim) if axis != 1 or self.low.size == 1)
        shape = [-1 if axis not in axes else 1 for axis in range(values.ndim)]
        low, high = (np.asarray(one, dtype=np.float64).reshape(shape) for one in (self.low, self.high))
        least = np.minimum(values.min(axis=axes, keepdims=True), 0)
        most = np.maximum(values.max(axis=axes, keepdims=True), 0)
        span = float((most - least).max())
        if span == 0:
            return None
        width = float((high - low).max())
        if width > WIDEST * span:
            return f"spans {width:.3g}, and real inputs only {span:.3g}"
        cut = float(((values < low - (high - low) / 100) | (values > high + (high - low) / 100)).mean())
        if cut > MOST_CUT.get(method, MOST_CUT["entropy"]):
            return f"cuts off {cut:.1%} of the numbers of real inputs"
        if method != "minmax":
            return None
        # Of values spread evenly within a step, whose square mean is a twelfth of the step's.
        nominal = float(np.square((most - least) / (self.levels - 1)).mean()) / 12
        lost = 10 * np.log10(max(_noise(values, low, high, self.levels) / nominal, 1e-30))
        if lost > LOSS_DB:
            return f"loses {lost:.0f} dB more on real inputs than a range of their own"
        return None


def _noise(values: np.ndarray, low: np.ndarray, high: np.ndarray, levels: int) -> float:
    steps = np.maximum(high - low, np.finfo(np.float64).tiny) / (levels - 1)
    rounded = np.rint((values.clip(low, high) - low) / steps) * steps + low
    return float(np.square(rounded - values).mean())


def ranges_check(ranges: Iterable[tuple[Range, np.ndarray]], method: str) -> Check:
    """All of them; the first that does not fit is named, and how many more there are."""
    problems = list(_problems(ranges, method))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Check(NAME, not problems, problems[0] + more if problems else "")


def _problems(ranges: Iterable[tuple[Range, np.ndarray]], method: str) -> Iterator[str]:
    for one, values in ranges:
        if problem := one.problem(values, method):
            yield f"the range of {one.name} {problem}"
