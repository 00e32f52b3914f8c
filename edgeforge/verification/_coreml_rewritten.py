"""A Core ML package whose weights and activations were quantized, against the float package it was made of.

The float package is held against torch. Of the quantized one every operation, constant and integer is compared with
the float one's; the ranges of its activations with what real inputs lead to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeforge.models.quantized_weights import LinearWeight
from edgeforge.runtimes._mil.model import ReferenceModel
from edgeforge.verification import Check
from edgeforge.verification._coreml_package import PyMIL
from edgeforge.verification._layer_noise import LayerNoise, decibels, worst_first
from edgeforge.verification._rounded_weights import linear_problem

OPERATIONS, WEIGHTS, RANGES = "operations are the float file's", "integers are the float weights", "ranges fit"

HALF_A_STEP = 0.6
"""coremltools divides in float16, whose steps are a sixteenth between 64 and 128."""

LARGEST = 127
LEAST_RANGE, MOST_RANGE = 0.5, 2.0
"""Of the largest number that real inputs lead to: how far a range, found on other samples, may end from there."""


class Rewritten:
    """Both programs, followed from their outputs back to their inputs, value beside value."""

    def __init__(self, found: PyMIL, original: PyMIL) -> None:
        self._wrong: list[str] = []
        self._weights: list[tuple[str, PyMIL, np.ndarray]] = []
        self._steps: dict[str, float] = {}
        self._partner: dict[int, PyMIL] = {}
        self._done: set[int] = set()
        self._passed: set[int] = set()
        self._waiting = deque(zip(found.outputs, original.outputs, strict=True))
        while self._waiting and not self._wrong:
            self._compare(*self._waiting.popleft())
        computing = {id(one) for one in found.operations if not one.op_type.startswith(_ADDED)}
        left = computing - self._partner.keys() - self._passed
        if left and not self._wrong:
            self._wrong.append(f"{len(left)} operations lead nowhere")

    def checks(self) -> list[Check]:
        """Every operation reads and computes what the float file's does; integers are the nearest to its weights."""
        wrong = [*self._wrong, *([] if self._steps else ["no activation is quantized"])]
        misplaced = [
            f"{name}: {problem}"
            for name, operation, floats in self._weights
            if (problem := _problem(operation, floats))
        ]
        return [
            Check(OPERATIONS, not wrong, wrong[0] if wrong else ""),
            Check(WEIGHTS, not misplaced, misplaced[0] if misplaced else f"of {len(self._weights)} weights"),
        ]

    @property
    def layers(self) -> tuple[LayerNoise, ...]:
        """What each weight lost, the worst first."""
        found = [(name, _integers(operation), floats) for name, operation, floats in self._weights]
        return worst_first(
            LayerNoise(name, decibels(floats, weight.dequantize()))
            for name, weight, floats in found
            if weight is not None and weight.shape == floats.shape
        )

    def ranges(self, original: ReferenceModel, samples: Sequence[dict[str, Any]]) -> Check:
        """Every range ends about where the float file's values do on real inputs."""
        largest: dict[str, float] = {}
        for sample in samples:
            values = original.values(sample)
            for name in self._steps:
                largest[name] = max(largest.get(name, 0.0), float(np.abs(values[name]).max()))
        for name, step in self._steps.items():
            share = LARGEST * step / max(largest[name], 1e-6)
            if not LEAST_RANGE <= share <= MOST_RANGE:
                said = f"that of {name} ends at {LARGEST * step:.4g}, and real inputs lead to {largest[name]:.4g}"
                return Check(RANGES, False, said)
        return Check(RANGES, True, f"of {len(self._steps)} activations, on {len(samples)} samples")

    def _compare(self, one: PyMIL, other: PyMIL) -> None:
        """A value of the quantized program beside the float one's; what they are made of waits its turn."""
        if one is None or other is None:
            if one is not other:
                self._wrong.append("something is read that the float file does not, or the other way round")
            return
        one, other = self._index(one), self._index(other)
        if _kind(one) == "dequantize":
            one = self._rounded(one.op, other)
        if _kind(other) == "const":
            self._constant(one, other)
        elif other.op is None or one.op is None:
            if one.op is not other.op or one.name != other.name:
                self._wrong.append(f"{other.name} comes from another place")
        elif self._partner.setdefault(id(one.op), other.op) is not other.op:
            self._wrong.append(f"{other.op.name} stands for two operations")
        else:
            self._operations(one, other)

    def _index(self, value: PyMIL) -> PyMIL:
        """The token ids behind what coremltools, each time it rewrites a program, puts around indices anew.

        Indices below 0 get a table's size added, and become integers of another size: ids of tokens stay what they are.
        """
        while True:
            kind, given = _kind(value), value.op.inputs if value.op is not None else {}
            if kind == "cast" and _whole(value) and _whole(given["x"]):
                around, inner = [value.op], given["x"]
            elif kind == "select" and _whole(value) and _wraps(given):
                around, inner = [value.op, given["cond"].op, given["b"].op], given["a"]
            else:
                return value
            self._passed.update(id(operation) for operation in around)
            value = inner

    def _operations(self, one: PyMIL, other: PyMIL) -> None:
        mine, theirs = one.op, other.op
        same = mine.op_type == theirs.op_type and mine.inputs.keys() == theirs.inputs.keys()
        if not same or _place(one) != _place(other):
            self._wrong.append(f"{theirs.name} is a {theirs.op_type}, and there is a {mine.op_type}")
            return
        if id(mine) in self._done:
            return
        self._done.add(id(mine))
        for name, value in theirs.inputs.items():
            values = _listed(mine.inputs[name]), _listed(value)
            if len(values[0]) != len(values[1]):
                self._wrong.append(f"{theirs.name}: '{name}' has another number of values")
                return
            if name == "perm":  # axes may count from the end
                orders = [np.asarray(one.val) % len(theirs.inputs["x"].shape) for one in (mine.inputs[name], value)]
                if not np.array_equal(orders[0], orders[1]):
                    self._wrong.append(f"{theirs.name} has another order of axes")
                continue
            self._waiting.extend(zip(*values, strict=True))

    def _constant(self, one: PyMIL, other: PyMIL) -> None:
        if _kind(one).startswith("constexpr"):
            self._weights.append((other.name, one.op, np.asarray(other.val, np.float64)))
        elif _kind(one) != "const" or not np.array_equal(np.asarray(one.val), np.asarray(other.val)):
            self._wrong.append(f"{other.name} is another number")

    def _rounded(self, decoded: PyMIL, other: PyMIL) -> PyMIL:
        """What was rounded to eight bits on the way here; its step is kept, by the float program's name for it."""
        encoded = decoded.inputs["input"].op
        if encoded is None or encoded.op_type != "quantize":
            self._wrong.append(f"{other.name} is decoded, and was not encoded")
            return decoded.inputs["input"]
        steps = [np.asarray(operation.inputs["scale"].val, np.float64).reshape(-1) for operation in (encoded, decoded)]
        shifts = [operation.inputs.get("zero_point") for operation in (encoded, decoded)]
        if not np.array_equal(steps[0], steps[1]) or len(steps[0]) != 1:
            self._wrong.append(f"{other.name} is decoded by another scale than it was encoded with")
        elif any(shift is not None and np.any(shift.val) for shift in shifts):
            self._wrong.append(f"{other.name} has a zero point")
        elif self._steps.setdefault(other.name, float(steps[0][0])) != float(steps[0][0]):
            self._wrong.append(f"{other.name} has two scales")
        return encoded.inputs["input"]


_ADDED = ("const", "quantize", "dequantize")


def _kind(value: PyMIL) -> str:
    return "" if value.op is None else str(value.op.op_type)


def _whole(value: PyMIL) -> bool:
    from coremltools.converters.mil.mil import types

    return bool(types.is_int(value.dtype))


def _wraps(given: dict[str, PyMIL]) -> bool:
    """select(x >= 0, x, x + size)"""
    inner, condition, sum_ = given["a"], given["cond"].op, given["b"].op
    if condition is None or sum_ is None or (condition.op_type, sum_.op_type) != ("greater_equal", "add"):
        return False
    zero, size = condition.inputs["y"].val, sum_.inputs["y"].val
    of_it = condition.inputs["x"] is inner and sum_.inputs["x"] is inner
    return bool(of_it and zero is not None and size is not None and np.all(zero == 0) and np.all(size > 0))


def _place(value: PyMIL) -> int:
    """Which output of its operation it is."""
    return next(place for place, output in enumerate(value.op.outputs) if output is value)


def _problem(operation: PyMIL, floats: np.ndarray) -> str | None:
    weight = _integers(operation)
    if weight is None or weight.shape != floats.shape:
        return "it is compressed in another way"
    return linear_problem(weight, floats, half_step=HALF_A_STEP)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _integers(operation: PyMIL) -> LinearWeight | None:
    """Integers and scales, one per output channel; None for anything else."""
    given = {name: value.val for name, value in operation.inputs.items() if value is not None}
    if operation.op_type == "constexpr_affine_dequantize":
        data, axis, shift = given["quantized_data"], int(given["axis"]), given["zero_point"]
        scales = np.atleast_1d(given["scale"])
        if axis != 0 or np.any(shift) or len(scales) != len(data):
            return None
        return LinearWeight(8, data.astype(np.int8), scales.reshape(-1, *[1] * (data.ndim - 1)))
    if operation.op_type == "constexpr_blockwise_shift_scale" and given.keys() == {"data", "scale"}:
        return LinearWeight(8, given["data"].astype(np.int8), given["scale"])
    return None
