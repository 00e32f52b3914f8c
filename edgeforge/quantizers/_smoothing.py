"""Outliers of activations moved into the weights that multiply them: SmoothQuant's exact rewriting of a float graph."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeforge import onnx_graph
from edgeforge.quantizers._record import Smoothed

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Group:
    """A normalised value, the layers that multiply it by weights, and whether nothing else reads it."""

    value: str
    layers: tuple[str, ...]
    alone: bool


def groups(model: onnx.ModelProto, kept: Container[str]) -> list[Group]:
    """The outputs of LayerNormalization that layers (but `kept`) multiply by a weight of their own, in order."""
    constants = onnx_graph.initializers(model)
    readers = onnx_graph.consumers(model)
    found = []
    for node in model.graph.node:
        if node.op_type != "LayerNormalization" or any(name not in constants for name in node.input[1:]):
            continue
        value = node.output[0]
        layers = [
            reader
            for reader in readers.get(value, ())
            if reader.name not in kept
            and _input_axis(reader) is not None
            and list(reader.input).count(value) == 1
            and reader.input[0] == value
            and reader.input[1] in constants
            and len(readers[reader.input[1]]) == 1
        ]
        if layers:
            alone = len(layers) == len(readers[value]) and value not in {item.name for item in model.graph.output}
            found.append(Group(value, tuple(layer.name for layer in layers), alone))
    return found


def _input_axis(node: onnx.NodeProto) -> int | None:
    """Along which axis of a layer's weight its input channels lie; None for what is no plain product."""
    if node.op_type == "MatMul":
        return 0
    if node.op_type != "Gemm" or onnx_graph.attribute(node, "transA", 0):
        return None
    return 1 if onnx_graph.attribute(node, "transB", 0) else 0


def smooth(
    model: onnx.ModelProto, found: Sequence[Group], magnitudes: Mapping[str, np.ndarray], alpha: float
) -> list[Smoothed]:
    """Divide each value by its factors and multiply the weights by them, in place; the function stays the same.

    Xiao et al., 2022, arXiv:2211.10438: ``factor = max|value| ** alpha / max|weight| ** (1 - alpha)`` per input channel
    (`magnitudes` has the former). Where nothing else reads the value, the division moves into the LayerNormalization;
    in encoders that normalise after the residual sum, the next one does, so an operator of its own divides.
    """
    constants = onnx_graph.initializers(model)
    nodes = {node.name: node for node in model.graph.node}
    normalizations = {node.output[0]: node for node in model.graph.node}
    done = []
    for group in found:
        layers = [nodes[name] for name in group.layers]
        weights = [constants[layer.input[1]] for layer in layers]
        axes = [_input_axis(layer) or 0 for layer in layers]
        largest = np.max([np.abs(w).max(axis=1 - axis) for w, axis in zip(weights, axes, strict=True)], axis=0)
        factors = _factors(magnitudes[group.value], largest, alpha)
        for layer, weight, axis in zip(layers, weights, axes, strict=True):
            shape = (-1, 1) if axis == 0 else (1, -1)
            _set(model, layer.input[1], weight * factors.reshape(shape))
        inverse = np.float32(1) / factors
        if group.alone:
            node = normalizations[group.value]
            for position in range(1, len(node.input)):
                scaled = f"{node.output[0]}_smoothed_{position}"
                _add(model, scaled, constants[node.input[position]] * inverse)
                node.input[position] = scaled
        else:
            _divide(model, normalizations[group.value], layers, inverse)
        done.append(Smoothed(group.value, tuple(layer.input[1] for layer in layers), group.alone, factors))
    return done


def _factors(values: np.ndarray, weights: np.ndarray, alpha: float) -> np.ndarray:
    """float32; 1 where a channel or its weights are all zeros."""
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = values.astype(np.float64) ** alpha / weights.astype(np.float64) ** (1 - alpha)
    return np.where((values > 0) & (weights > 0), factors, 1.0).astype(np.float32)


def _divide(
    model: onnx.ModelProto, source: onnx.NodeProto, layers: Sequence[onnx.NodeProto], inverse: np.ndarray
) -> None:
    from onnx import helper

    value = source.output[0]
    result = smoothed_name(value)
    _add(model, f"{value}_inverse", inverse)
    node = helper.make_node("Mul", [value, f"{value}_inverse"], [result], name=f"{result} divided")
    model.graph.node.insert(list(model.graph.node).index(source) + 1, node)
    for layer in layers:
        layer.input[0] = result


def smoothed_name(value: str) -> str:
    """What a value is called behind an operator that divides it."""
    return f"{value}_smoothed"


def _add(model: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    from onnx import numpy_helper

    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))


def _set(model: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    from onnx import numpy_helper

    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))
