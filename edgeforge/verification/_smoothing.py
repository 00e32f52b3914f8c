"""A float ONNX graph with its outliers moved into the weights, as a quantizer recorded that it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeforge import onnx_graph

if TYPE_CHECKING:
    import onnx


def smoothed(model: onnx.ModelProto, entries: Sequence[Mapping[str, Any]]) -> onnx.ModelProto:
    """A copy in which each entry's `weights` are multiplied by factors, and what they multiply divided (2211.10438).

    Entries are those of ``quantization.json``. With `folded`, the LayerNormalization that gives the value divides;
    else the quotient is a value of its own, whose name ends in ``_smoothed``.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = onnx_graph.initializers(model)
    for entry in entries:
        factors = np.asarray(entry["factors"], dtype=np.float32)
        inverse = np.float32(1) / factors
        normalization = next(node for node in copy.graph.node if entry["value"] in node.output)
        if entry["folded"]:
            for name in normalization.input[1:]:
                _replace(copy, name, constants[name] * inverse, only=normalization)
        else:
            divided = f"{entry['value']}_smoothed"
            _constant(copy, f"{divided}_by", inverse)
            position = list(copy.graph.node).index(normalization) + 1
            quotient = onnx.helper.make_node("Mul", [entry["value"], f"{divided}_by"], [divided])
            copy.graph.node.insert(position, quotient)
        for node in copy.graph.node:
            if len(node.input) > 1 and node.input[1] in entry["weights"]:
                rows = node.op_type == "MatMul" or not onnx_graph.attribute(node, "transB", 0)
                weight = constants[node.input[1]]
                _replace(copy, node.input[1], weight * (factors[:, None] if rows else factors), only=None)
                node.input[0] = node.input[0] if entry["folded"] else divided
    return copy


def _constant(model: onnx.ModelProto, name: str, array: np.ndarray) -> None:
    from onnx import numpy_helper

    model.graph.initializer.append(numpy_helper.from_array(np.array(array, order="C"), name))


def _replace(model: onnx.ModelProto, name: str, array: np.ndarray, *, only: onnx.NodeProto | None) -> None:
    """A constant's numbers, for all that read it or for one node alone."""
    if only is not None:
        _constant(model, f"{name} of {only.output[0]}", array)
        only.input[:] = [f"{name} of {only.output[0]}" if item == name else item for item in only.input]
        return
    kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
    model.graph.ClearField("initializer")
    model.graph.initializer.extend(kept)
    _constant(model, name, array)
