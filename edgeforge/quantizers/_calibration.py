"""Ranges of a float ONNX graph's values on real inputs: what eight bits should span."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgeforge.core.errors import ModelError
from edgeforge.core.extras import require

if TYPE_CHECKING:
    import onnx
    import onnxruntime

Method = Literal["minmax", "percentile", "entropy"]
Range = tuple[float, float]

BINS = 2048
"""Histogram bins. Entropy needs many more of them than it has levels: as many leave it nothing to choose from."""

CUT_STEP = 16
"""Entropy tries every 16th bin as the place to cut: 0.8 % of the range."""


class Calibrator:
    """Runs a float graph with its inner values as outputs. `batches` starts over at every call."""

    def __init__(
        self, model: onnx.ModelProto, names: Sequence[str], batches: Callable[[], Iterator[dict[str, np.ndarray]]]
    ) -> None:
        """`names`: float values of the graph, its inputs included. A batch: inputs by name, (N, ...), of any length."""
        inputs = {value.name for value in model.graph.input}
        self._inputs = [name for name in names if name in inputs]
        self._names = [name for name in names if name not in inputs]
        self._batches = batches
        self._session = _watched(model, self._names)

    def ranges(self, method: Method, percentile: float) -> dict[str, Range]:
        """Value name -> (low, high) with low <= 0 <= high. Raises ModelError where a value is not finite.

        `minmax`: everything seen. `percentile`: what holds `percentile` percent of the numbers, an equal share cut
        off at both ends. `entropy`: see `entropy_limit`.
        """
        seen = self._extremes()
        if method == "minmax":
            return seen
        counts = self._histograms(seen, folded=method == "entropy")
        return {name: _chosen(method, counts[name], seen[name], percentile) for name in seen}

    def magnitudes(self) -> dict[str, np.ndarray]:
        """Value name -> the largest absolute number in each channel (last axis), float32, (channels,)."""
        found: dict[str, np.ndarray] = {}
        for name, value in self._values():
            largest = np.abs(value).reshape(-1, value.shape[-1]).max(axis=0)
            found[name] = np.maximum(found[name], largest) if name in found else largest
        return found

    def _values(self) -> Iterator[tuple[str, np.ndarray]]:
        for batch in self._batches():
            yield from ((name, batch[name]) for name in self._inputs)
            yield from zip(self._names, self._session.run(self._names, batch), strict=True)

    def _extremes(self) -> dict[str, Range]:
        found: dict[str, Range] = {}
        for name, value in self._values():
            low, high = float(value.min()), float(value.max())
            if not (np.isfinite(low) and np.isfinite(high)):
                raise ModelError(
                    "the model gives values that are not finite on training data, so there is no range to quantize",
                    remedy="look at the chain's metrics: this model is broken before quantization",
                )
            # Zero must be exact: padding, ReLU and dropped channels are zeros.
            before = found.get(name, (0.0, 0.0))
            found[name] = (min(before[0], low), max(before[1], high))
        return found

    def _histograms(self, seen: dict[str, Range], *, folded: bool) -> dict[str, np.ndarray]:
        counts = {name: np.zeros(BINS, dtype=np.int64) for name in seen}
        for name, value in self._values():
            low, high = seen[name]
            if folded:
                # Zero is exact in every grid; counted, the zeros behind a ReLU would drown all else.
                value, low, high = np.abs(value[value != 0]), 0.0, max(-low, high)
            if high > low:
                counts[name] += np.histogram(value, bins=BINS, range=(low, high))[0]
        return counts


def _watched(model: onnx.ModelProto, names: Sequence[str]) -> onnxruntime.InferenceSession:
    """A session whose outputs are `names`, computed node by node as the file says."""
    import onnx

    ort = require("onnxruntime", "onnx")
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.ClearField("output")
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _chosen(method: Method, counts: np.ndarray, seen: Range, percentile: float) -> Range:
    low, high = seen
    if high == low:
        return seen
    if method == "percentile":
        cut_low, cut_high = percentile_limits(counts, seen, percentile)
        return min(cut_low, 0.0), max(cut_high, 0.0)
    # A value that is never negative has all 255 steps on its positive side, others half of them.
    levels = 255 if low == 0.0 else 128
    limit = entropy_limit(counts, levels) * max(-low, high) / BINS
    return max(low, -limit), min(high, limit)


def percentile_limits(counts: np.ndarray, seen: Range, percentile: float) -> Range:
    """The values below which (100 - p) / 2 and above which as many percent lie; linear within a bin of `counts`."""
    edges = np.linspace(*seen, len(counts) + 1)
    below = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
    tail = (100 - percentile) / 200
    return float(np.interp(tail, below, edges)), float(np.interp(1 - tail, below, edges))


def entropy_limit(counts: np.ndarray, levels: int) -> int:
    """How many bins of a histogram of magnitudes to keep, so that `levels` steps lose the least information.

    For each limit, the histogram cut there (what lies beyond counts at the limit) is compared with itself in `levels`
    steps; the least Kullback-Leibler divergence wins (Migacz, 2017, "8-bit Inference with TensorRT").
    """
    best, chosen = np.inf, len(counts)
    for limit in range(levels, len(counts) + 1, CUT_STEP):
        kept = counts[:limit].astype(np.float64)
        reference = kept.copy()
        reference[-1] += counts[limit:].sum()
        divergence = _divergence(_smoothed(reference), _smoothed(_in_steps(kept, levels)))
        if divergence < best:
            best, chosen = divergence, limit
    return chosen


def _in_steps(counts: np.ndarray, levels: int) -> np.ndarray:
    """Each of `levels` steps spreads its count evenly over the bins in it that hold anything."""
    starts = np.arange(levels) * len(counts) // levels
    filled = counts > 0
    means = np.add.reduceat(counts, starts) / np.maximum(np.add.reduceat(filled.astype(np.int64), starts), 1)
    result: np.ndarray = np.repeat(means, np.diff(np.append(starts, len(counts)))) * filled
    return result


def _smoothed(counts: np.ndarray, floor: float = 1e-4) -> np.ndarray | None:
    """A little of every filled bin moved to the empty ones, so that no logarithm is infinite; None where all are."""
    empty = counts == 0
    if empty.all():
        return None
    taken = floor * empty.sum() / (~empty).sum()
    return np.where(empty, floor, np.maximum(counts - taken, floor))


def _divergence(reference: np.ndarray | None, candidate: np.ndarray | None) -> float:
    if reference is None or candidate is None:
        return np.inf
    p, q = reference / reference.sum(), candidate / candidate.sum()
    return float(np.sum(p * np.log(p / q)))
