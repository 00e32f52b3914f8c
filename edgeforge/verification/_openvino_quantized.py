"""OpenVINO files that a quantizer rewrote, held against the float file they were made from.

The quantizer's library is not asked again. Integers must be the float weights to half a step; with ranges taken out
and float weights put back, the file must compute what the float file does; ranges and biases must be those recorded;
and what the runtime computes in integers must be what the same ranges give in float arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeforge import openvino_graph
from edgeforge.openvino_graph import constant
from edgeforge.verification import Check, Parity, differences
from edgeforge.verification._calibration import Range, ranges_check
from edgeforge.verification._layer_noise import LayerNoise, decibels, worst_first
from edgeforge.verification._opened import Inputs

if TYPE_CHECKING:
    import openvino
    from openvino import Node, Output

    Run = Callable[[openvino.Model], np.ndarray]

HALF_A_STEP = 0.501
"""Steps between a float weight and its integer: scales are float32, so halves are not met to the last bit."""

LEAST_LEVELS = 15
"""The largest weight of a channel has at least this integer. Layers whose sums might overflow get half the range, and
NNCF sets scales before it moves factors out of the weights: 34 of 127 was seen on a trained encoder. What such a layer
loses shows in fidelity; scales beyond this are a fault."""

NOISE_SHARE = 1.5
MOST_NOISE = 2.0
"""Of quantization's own error, root mean square and largest. The plugin leaves out roundings between a convolution and
the addition behind it; errors that have nothing in common but their size are the square root of 2 apart."""


class Quantized:
    """A rewritten file and its parent, both read from disk. `run`: a graph's logits on samples of its own."""

    reference = "the file's ranges and integers in float arithmetic"

    def __init__(self, original: openvino.Model, file: openvino.Model, run: Run) -> None:
        self._original = openvino_graph.layers(original)
        self._layers = openvino_graph.layers(file)
        self._file = file
        self._run = run
        self.clean = run(original)

    def checks(self, record: Mapping[str, Any], *, limit: float) -> list[Check]:
        """`record`: what the quantizer left; `limit`: what float32 arithmetic may move the outputs."""
        if self._layers.keys() != self._original.keys():
            odd = sorted(self._layers.keys() ^ self._original.keys())
            return [Check("layers", False, f"{odd[0]} is in only one of the quantized file and the float file")]
        wrong = next(self._wrong_weights(), None)
        return [
            Check("integers are the float weights", wrong is None, wrong or ""),
            self._recorded("quantized values", openvino_graph.quantized_values(self._file), record["values"]),
            self._recorded("biases", openvino_graph.bias_digests(self._file), record["biases"]),
            self._connections(limit),
        ]

    def parity(self, outputs: np.ndarray, *, floor: float) -> Parity:
        """What the runtime gave against the file in float arithmetic. `floor`: what float32 may move in any case."""
        expected = self._run(_in_float(self._file))
        noise, error = _rms(expected - self.clean), _rms(outputs - expected)
        limit = NOISE_SHARE * noise + floor
        worst = MOST_NOISE * float(np.abs(expected - self.clean).max()) + floor
        found = differences(outputs, expected)
        passed = error <= limit and found["max_abs_error"] is not None and found["max_abs_error"] <= worst
        why = (
            f"root mean square difference {error:.3g}, at most {limit:.3g}: the runtime may leave roundings out, and "
            f"quantization itself moves the outputs by {noise:.3g}"
        )
        return Parity(self.reference, passed, why, tolerance=worst, **found)  # type: ignore[arg-type]

    def _wrong_weights(self) -> Iterator[str]:
        for name, layer in self._layers.items():
            wanted = self._expected_weight(name).astype(np.float64)
            found = constant(layer.weight).astype(np.float64)
            if wanted.shape != found.shape:
                yield f"{name} has a weight of shape {found.shape}, not {wanted.shape}"
            elif not openvino_graph.is_quantized(layer):
                if not np.allclose(found, wanted, rtol=1e-5, atol=0):
                    yield f"{name} is kept in float, and is not the float file's"
            elif reason := _wrong_integers(wanted, found, openvino_graph.scales(layer).astype(np.float64)):
                yield f"{name}: {reason}"

    def _expected_weight(self, name: str) -> np.ndarray:
        """The float file's weight, less what now multiplies its inputs (SmoothQuant)."""
        layer, original = self._layers[name], self._original[name]
        weight = constant(original.weight)
        if layer.activation is None or original.activation is None:
            return weight
        moved = np.asarray(_factor(layer.activation) / _factor(original.activation)).reshape(-1)
        if moved.size > 1 and weight.ndim == 2 and not layer.node.get_attributes().get("transpose_b", True):
            moved = moved[:, None]
        return weight if np.all(moved == 1) else weight / moved

    def _recorded(self, name: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Check:
        for key in sorted(found.keys() | wanted.keys()):
            if found.get(key) != wanted.get(key):
                return Check(name, False, f"{key} is {found.get(key)}, and {wanted.get(key)} was recorded")
        return Check(name, True)

    def ranges(self, samples: Inputs) -> Check:
        """Recorded ranges against the values of real inputs, in float."""
        graph, roundings = self._in_float()
        pairs = []
        for node, values in zip(roundings, _values_of(graph, roundings, samples), strict=True):
            low, high = (constant(node.input_value(port)) for port in (1, 2))
            pairs.append((Range(node.get_friendly_name(), low, high, node.get_attributes()["levels"]), values))
        return ranges_check(pairs, "minmax")

    def layers(self) -> tuple[LayerNoise, ...]:
        """What each layer with integers lost, the worst first."""
        return worst_first(
            LayerNoise(name, decibels(self._expected_weight(name), constant(layer.weight)))
            for name, layer in self._layers.items()
            if openvino_graph.is_quantized(layer)
        )

    def _connections(self, limit: float) -> Check:
        """Without ranges, and with the float file's weights and biases, the outputs are the float file's."""
        graph, _ = self._in_float()
        apart = float(np.abs(self._run(graph) - self.clean).max())
        return Check("connections", apart <= limit, f"with float weights the outputs differ by {apart:.3g}")

    def _in_float(self) -> tuple[openvino.Model, list[Node]]:
        """The file without ranges, with the float file's weights and biases; and its roundings, which nothing reads."""
        from openvino import opset13 as ops

        graph = self._file.clone()
        roundings = _roundings(graph)
        for node in roundings:
            node.output(0).replace(node.input_value(0))
        for name, layer in openvino_graph.layers(graph).items():
            weight = ops.constant(self._expected_weight(name).astype(np.float32))
            layer.node.input(layer.port).replace_source_output(weight.output(0))
            if place := openvino_graph.bias_of(layer):
                addition, port = place
                bias = self._expected_bias(name, constant(addition.input_value(port)))
                addition.input(port).replace_source_output(ops.constant(bias).output(0))
        return graph, roundings

    def _expected_bias(self, name: str, found: np.ndarray) -> np.ndarray:
        place = openvino_graph.bias_of(self._original[name])
        return constant(place[0].input_value(place[1])) if place else np.zeros_like(found)


def _wrong_integers(wanted: np.ndarray, found: np.ndarray, scales: np.ndarray) -> str | None:
    steps = np.abs(found - wanted) / scales
    if not steps.max() <= HALF_A_STEP:
        return f"an integer is {steps.max():.3g} steps from the float weight"
    shared = tuple(axis for axis, length in enumerate(scales.shape) if length == 1)
    largest = np.abs(wanted).max(axis=shared, keepdims=True)
    coarse = (scales * LEAST_LEVELS > 1.01 * largest) & (largest > 0)
    return f"{int(coarse.sum())} scales are larger than the weights need" if coarse.any() else None


def _factor(value: Output) -> np.ndarray:
    """The product of the constants that a layer's input is multiplied by just before it is used."""
    product = np.ones((), dtype=np.float32)
    node = value.get_node()
    while node.get_type_name() in ("FakeQuantize", "Multiply"):
        port = 0
        if node.get_type_name() == "Multiply":
            fixed = [side for side in (0, 1) if openvino_graph.is_constant(node.input_value(side))]
            if len(fixed) != 1:
                break
            product = product * constant(node.input_value(fixed[0]))
            port = 1 - fixed[0]
        node = node.input_value(port).get_node()
    return product


def _values_of(graph: openvino.Model, roundings: Sequence[Node], samples: Inputs) -> list[np.ndarray]:
    """What each rounding is given."""
    from edgeforge.runtimes.openvino import SETTINGS

    if not roundings:
        return []
    ov = openvino_graph.load_openvino()
    watched = ov.Model([node.input_value(0) for node in roundings], graph.get_parameters(), "watched")
    request = openvino_graph.core().compile_model(watched, "CPU", SETTINGS).create_infer_request()
    results = request.infer(samples)
    return [np.array(results[index]) for index in range(len(roundings))]


def _roundings(model: openvino.Model) -> list[Node]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]


def _in_float(file: openvino.Model) -> openvino.Model:
    """The same function in plain operators, which no plugin takes for integer arithmetic."""
    from openvino import opset13 as ops

    graph = file.clone()
    for node in _roundings(graph):
        low, high, out_low, out_high = (constant(node.input_value(port)) for port in range(1, 5))
        steps = np.float32(node.get_attributes()["levels"] - 1)
        within = ops.minimum(ops.maximum(node.input_value(0), low), high)
        rounded = ops.round(ops.multiply(ops.subtract(within, low), steps / (high - low)), "half_to_even")
        node.output(0).replace(ops.add(ops.multiply(rounded, (out_high - out_low) / steps), out_low).output(0))
    for layer in openvino_graph.layers(graph).values():
        weight = ops.constant(constant(layer.weight).astype(np.float32))
        layer.node.input(layer.port).replace_source_output(weight.output(0))
    return graph


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values.astype(np.float64)))))
