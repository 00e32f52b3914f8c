"""ONNX files that a quantizer rewrote, held against their float parent computed with the recorded numbers.

Two questions, since one answer cannot be both sharp and fair. What does the file mean? The evaluator computes the
file and its parent alike, so a wrong scale, integer, bias or connection stands out at 1e-9. What does the runtime make
of it? Its float32 decides ties between two steps differently now and then, which spreads from layer to layer; that may
not reach the size of quantization's own error.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeforge import onnx_graph
from edgeforge.verification import Check, Parity, differences
from edgeforge.verification._calibration import Range, ranges_check
from edgeforge.verification._evaluator import evaluate
from edgeforge.verification._grids import Grid, Grids, Table
from edgeforge.verification._layer_noise import LayerNoise, decibels, worst_first
from edgeforge.verification._onnx_integers import wrong_integers
from edgeforge.verification._opened import Inputs, batches_of
from edgeforge.verification._operators import UnknownOperator
from edgeforge.verification._smoothing import smoothed

if TYPE_CHECKING:
    import onnx
    import torch

RECORD = "quantization.json"

SAME = 1e-9
"""Relative to the largest output: both sides are computed by the same code in float64, in another order at most."""

NOISE_SHARE = 0.25
SPREAD = 4
MOST_NOISE = 2.0
"""Errors that have nothing in common but their size are the square root of 2 apart; more is another model."""


WATCHED = 32
"""Samples whose inner values are looked at."""


class Quantized:
    """A rewritten file, its float parent, and what that gives with and without the recorded numbers."""

    reference = "the float file computed with the quantizer's numbers"

    def __init__(self, original: Path, folder: Path, samples: Inputs, batch: int) -> None:
        """`samples`: real inputs by name, (N, ...), computed `batch` at a time."""
        self._original = onnx_graph.load(original)
        self._file = onnx_graph.load(folder)
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        self._grids = Grids.read(record)
        self._smoothed = bool(record.get("smoothed"))
        self._parent = smoothed(self._original, record.get("smoothed", ()))
        self._batches = batches_of(samples, batch)

    def unknown(self) -> str | None:
        """Why the parent cannot be computed here, or None."""
        try:
            evaluate(self._original, batches_of(self._batches[0], 1)[0])
        except UnknownOperator as error:
            return f"the evaluator does not know the operator {error}"
        return None

    @functools.cached_property
    def clean(self) -> np.ndarray:
        """The outputs of the file that was quantized, float64."""
        return self._computed(self._original, Grids())

    @functools.cached_property
    def _expected(self) -> np.ndarray:
        return self._computed(self._parent, self._grids)

    def _computed(self, model: onnx.ModelProto, grids: Grids, dtype: str = "float64") -> np.ndarray:
        return np.concatenate([evaluate(model, batch, grids=grids, dtype=dtype) for batch in self._batches])

    def checks(self, *, floor: float) -> list[Check]:
        """The values' numbers, which may be wrong without showing on a few samples, and what the whole file means."""
        wrong = wrong_values(self._file, self._grids)
        integer = next(wrong_integers(self._file, self._parent, self._grids), None)
        checks = [
            Check("quantized values", wrong is None, wrong or ""),
            Check("integers are the float weights", integer is None, integer or ""),
            self._meaning(),
        ]
        if self._smoothed:
            apart = float(np.abs(self._computed(self._parent, Grids()) - self.clean).max())
            checks.append(Check("smoothing keeps the function", apart <= floor, f"outputs move by {apart:.3g}"))
        return checks

    def _meaning(self) -> Check:
        name = "file means what the quantizer chose"
        try:
            found = self._computed(self._file, Grids())
        except UnknownOperator as error:
            return Check(name, None, f"the evaluator does not know the operator {error}")
        # A bias that the file holds in float is rounded by the runtime, not by the file.
        held = {array.tobytes() for array in onnx_graph.initializers(self._file).values() if array.dtype == np.float32}
        floats = onnx_graph.initializers(self._parent)
        biases = frozenset(name for name, array in floats.items() if array.ndim == 1 and array.tobytes() in held)
        expected = self._computed(self._parent, dataclasses.replace(self._grids, float_biases=biases))
        apart = float(np.abs(found - expected).max()) if np.isfinite(found).all() else np.inf
        limit = SAME * max(float(np.abs(expected).max()), 1.0)
        return Check(name, apart <= limit, f"outputs differ by {apart:.3g}, at most {limit:.3g}")

    def ranges(self, method: str) -> Check | None:
        """Recorded ranges against the values of real inputs; None where all are found at run time."""
        found = self._watched(self._parent, Grids(), self._grids.values.keys())
        pairs = [(_range(name, grid), found[name]) for name, grid in self._grids.values.items() if name in found]
        return ranges_check(pairs, method) if pairs else None

    def layers(self) -> tuple[LayerNoise, ...]:
        """What each layer with integers lost, the worst first."""
        import torch

        floats = onnx_graph.initializers(self._parent)
        places = {
            node.input[1] if node.op_type != "Gather" else node.input[0]: node
            for node in self._parent.graph.node
            if node.op_type in ("Conv", "Gemm", "MatMul", "Gather")
        }
        grids: dict[str, Grid | Table] = {**self._grids.weights, **self._grids.tables}
        outputs = [places[name].output[0] for name in grids if name in places]
        clean = self._watched(self._parent, Grids(), outputs)
        moved = self._watched(self._parent, self._grids, outputs)
        found = []
        for name, grid in grids.items():
            if name in places and name in floats:
                output = places[name].output[0]
                snapped = grid.snap(torch.from_numpy(floats[name].copy())).numpy()
                label = places[name].name or name
                found.append(LayerNoise(label, decibels(floats[name], snapped), decibels(clean[output], moved[output])))
        return worst_first(found)

    def _watched(self, model: onnx.ModelProto, grids: Grids, names: Collection[str]) -> dict[str, np.ndarray]:
        """Values by name, on the first samples."""
        found: dict[str, np.ndarray] = {}

        def watch(name: str, value: torch.Tensor) -> None:
            if name in names:
                found[name] = value.numpy()

        few = {name: array[:WATCHED] for name, array in self._batches[0].items()}
        evaluate(model, few, grids=grids, dtype="float32", watch=watch)
        return found

    def parity(self, outputs: np.ndarray, *, floor: float) -> Parity:
        """What the runtime gave against what the file should give. `floor`: what float32 may move in any case."""
        spread = _rms(self._computed(self._parent, self._grids, "float32") - self._expected)
        noise = _rms(self._expected - self.clean)
        # One tie can move a range that is found at run time, and with it how every later value is rounded.
        share = MOST_NOISE if self._grids.dynamic else NOISE_SHARE
        limit = min(max(share * noise, SPREAD * spread), MOST_NOISE * noise) + floor
        worst = MOST_NOISE * float(np.abs(self._expected - self.clean).max()) + floor
        error = _rms(outputs - self._expected)
        found = differences(outputs, self._expected)
        passed = error <= limit and found["max_abs_error"] is not None and found["max_abs_error"] <= worst
        why = (
            f"root mean square difference {error:.3g}, at most {limit:.3g}: values halfway between two steps may be "
            f"rounded either way; quantization itself moves the outputs by {noise:.3g}"
        )
        return Parity(self.reference, passed, why, tolerance=worst, **found)  # type: ignore[arg-type]


def _range(name: str, grid: Grid) -> Range:
    limits = np.iinfo(grid.type)
    low, high = ((end - grid.zero_point.astype(np.float64)) * grid.scale for end in (limits.min, limits.max))
    return Range(name, np.asarray(low), np.asarray(high), 256)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def wrong_values(file: onnx.ModelProto, grids: Grids) -> str | None:
    """The first quantized value whose scale and zero point are not those recorded, in words; None where all are."""
    constants = onnx_graph.initializers(file)
    quantizers = {node.output[0]: node for node in file.graph.node if node.op_type == "QuantizeLinear"}
    found = Counter(_numbers(node, constants) for node in quantizers.values())
    wanted = Counter(
        (float(grid.scale), int(grid.zero_point), str(grid.zero_point.dtype)) for grid in grids.values.values()
    )
    for where, more in (
        ("in the file, but not recorded", found - wanted),
        ("recorded, but not in the file", wanted - found),
    ):
        for scale, zero_point, kind in more:
            return f"scale {scale:.6g} with zero point {zero_point} ({kind}) is {where}"
    for node in file.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] in constants:
            continue
        quantizer = quantizers.get(node.input[0])
        if quantizer is None or _numbers(quantizer, constants) != _numbers(node, constants):
            return f"the value {node.input[0]} is quantized with other numbers than it is dequantized with"
    return None


def _numbers(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> tuple[float, int, str]:
    scale, zero_point = constants[node.input[1]], constants[node.input[2]]
    return float(scale), int(zero_point), str(zero_point.dtype)
