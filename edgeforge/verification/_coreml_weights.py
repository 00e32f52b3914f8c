"""The weights in a Core ML program against those of the torch model."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Container, Iterable, Iterator

import numpy as np

from edgeforge.core.errors import VerificationError
from edgeforge.models.quantized_weights import LinearWeight, PalettizedWeight, QuantizedWeight
from edgeforge.verification import Check
from edgeforge.verification._coreml_package import PyMIL, constants, stored_weight
from edgeforge.verification._expected_weights import Expected, Layer, Stored, Values


class Comparison:
    """Every weight of `expected` is looked for in a program, and every constant of the program among them.

    `max_abs_error` is the largest difference met so far, among weights that are stored as floats. `stored` has the
    numbers that the program computes with, by the name that `expected` has for them.
    """

    def __init__(self, expected: Expected) -> None:
        self.expected = expected
        self.max_abs_error = 0.0
        self.stored: dict[str, np.ndarray] = {}

    def layers(self, function: PyMIL) -> Check:
        """Convolutions and linear layers, in the order they run: integers to the bit, floats up to rounding."""
        problems = [problem for kind in ("conv", "linear") for problem in self._layers_of(kind, function)]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return Check("layers", not problems, problems[0] + more if problems else "")

    def _layers_of(self, kind: str, function: PyMIL) -> Iterator[str]:
        wanted = [layer for layer in self.expected.layers if layer.kind == kind]
        found = [operation for operation in function.operations if operation.op_type == kind]
        if len(found) != len(wanted):
            yield f"there are {len(found)} {kind} layers, and should be {len(wanted)}"
            return
        for operation, layer in zip(found, wanted, strict=True):
            yield from self._layer(operation, layer)

    def _layer(self, operation: PyMIL, layer: Layer) -> Iterator[str]:
        try:
            weight = stored_weight(operation.inputs["weight"])
        except VerificationError as error:
            yield error.what
            return
        if layer.quantized is not None:
            problem = _integers(layer.weight.name, weight, layer.quantized)
        else:
            problem = self._floats(layer.weight, weight)
        if problem:
            yield problem
        self._keep(layer.weight.name, weight)
        bias = operation.inputs.get("bias")
        stored = np.zeros(layer.bias.numbers.shape, dtype=np.float32) if bias is None else stored_weight(bias)
        if problem := self._floats(layer.bias, stored):
            yield problem
        self._keep(layer.bias.name, stored)

    def _keep(self, name: str, stored: np.ndarray | QuantizedWeight | None) -> None:
        if isinstance(stored, np.ndarray):
            self.stored[name] = stored
        elif stored is not None:
            # A phone multiplies them out in the precision that the scales have.
            numbers = stored.scales if isinstance(stored, LinearWeight) else stored.palettes
            self.stored[name] = stored.dequantize().astype(numbers.dtype)

    def _floats(self, wanted: Values, stored: np.ndarray | QuantizedWeight | None) -> str | None:
        if not isinstance(stored, np.ndarray):
            return f"{wanted.name} is not stored as floats"
        if stored.shape != wanted.numbers.shape:
            return f"{wanted.name} has shape {stored.shape}, and should have {wanted.numbers.shape}"
        wrong = wanted.wrong(stored)
        error = wanted.error(stored)
        self.max_abs_error = max(self.max_abs_error, float(np.nan_to_num(error, nan=np.inf).max()))
        if wrong.any():
            return f"{wanted.name}: {wrong.sum()} of {wrong.size} numbers differ, by up to {error[wrong].max():.2g}"
        return None

    def others(self, function: PyMIL, *, ignored: Iterable[PyMIL]) -> Check:
        """Constants of all other operations are the model's other weights, in the order they are read."""
        problem = self._other_problem(function, {operation.name for operation in ignored})
        return Check("other weights", problem is None, problem or "")

    def _other_problem(self, function: PyMIL, skipped: Container[str]) -> str | None:
        wanted = deque(self.expected.others)
        try:
            found = list(read_by_others(function, skipped))
        except VerificationError as error:
            return error.what
        for place, value in found:
            # Multiplying by ones and adding zeros is left out of a program.
            while wanted and _may_be_left_out(wanted[0], value):
                wanted.popleft()
            if not wanted:
                return f"{place} is no weight of the model"
            forms = wanted.popleft()
            form = next((form for form in forms if form.values.numbers.size == _size(value)), None)
            if form is None:
                return f"{place} should be {forms[0].values.name}, and has another size"
            if problem := self._stored(form, value):
                return f"{place}: {problem}"
            self._keep(form.values.name, _without_batch(value))
        missing = [forms[0].values.name for forms in wanted if not forms[0].values.neutral]
        return f"{missing[0]} is missing" if missing else None

    def _stored(self, wanted: Stored, value: np.ndarray | QuantizedWeight) -> str | None:
        if wanted.quantized is not None:
            return _integers(wanted.values.name, _without_batch(value), wanted.quantized)
        if isinstance(value, np.ndarray):
            value = value.reshape(wanted.values.numbers.shape)
        return self._floats(wanted.values, value)


def read_by_others(function: PyMIL, skipped: Container[str] = ()) -> Iterator[tuple[str, np.ndarray | QuantizedWeight]]:
    """(where it is read, what) for the constants of all operations but layers and the `skipped`, in order.

    Raises VerificationError for a compression that no exporter here writes.
    """
    for operation in function.operations:
        if operation.name in skipped or operation.op_type.startswith(("const", "conv", "linear", "classify")):
            continue
        for argument, value in constants(operation).items():
            yield f"{argument} of {operation.op_type} {operation.name}", value


def _may_be_left_out(wanted: tuple[Stored, ...], value: np.ndarray | QuantizedWeight) -> bool:
    values = wanted[0].values
    return values.neutral and not (isinstance(value, np.ndarray) and values.matches(value))


def _size(value: np.ndarray | QuantizedWeight) -> int:
    return math.prod(value.shape)


def _without_batch(stored: np.ndarray | QuantizedWeight) -> np.ndarray | QuantizedWeight:
    """Rows of a table that are added to tokens have an axis of one before them."""
    if isinstance(stored, np.ndarray) or len(stored.shape) != 3 or stored.shape[0] != 1:
        return stored
    if isinstance(stored, LinearWeight):
        return LinearWeight(stored.bits, stored.integers[0], stored.scales[0])
    return PalettizedWeight(stored.bits, stored.indices[0], stored.palettes)


def _integers(name: str, stored: np.ndarray | QuantizedWeight | None, wanted: QuantizedWeight) -> str | None:
    """What differs between stored and decided integers and scales, or indices and palettes; None where nothing does."""
    if type(stored) is not type(wanted) or not isinstance(stored, LinearWeight | PalettizedWeight):
        return f"{name} is not stored as {'integers and scales' if isinstance(wanted, LinearWeight) else 'a palette'}"
    if stored.bits != wanted.bits:
        return f"{name} has {stored.bits} bits, and should have {wanted.bits}"
    found, decided = stored.tensors(), wanted.tensors()
    for part in decided:
        if found[part].shape != decided[part].shape:
            return f"{part} of {name} have shape {found[part].shape}, and should have {decided[part].shape}"
        wrong = found[part].astype(np.float64) != decided[part].astype(np.float64)
        if wrong.any():
            return f"{wrong.sum()} of {wrong.size} {part} of {name} differ"
    return None
