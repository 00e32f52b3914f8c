"""The size of every value of an ONNX graph for one sample, also where the graph itself computes sizes as it runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgeforge import onnx_graph

if TYPE_CHECKING:
    import numpy as np
    import onnx

Shapes = dict[str, tuple[int | None, ...]]

SMALL = 64
"""Constants with more elements are data, not sizes: their contents are not looked at."""


def of_one_sample(model: onnx.ModelProto, length: int | None) -> onnx.ModelProto:
    """A copy with the open axes of its inputs fixed, to one sample of this length, and without its large contents.

    Raises ValueError where an axis is open and `length` is None.
    """
    from onnx import GraphProto, ModelProto

    graph = GraphProto()
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        kept = graph.initializer.add()
        if math.prod(tensor.dims) <= SMALL:
            kept.CopyFrom(tensor)
        else:
            kept.name, kept.data_type = tensor.name, tensor.data_type
            kept.dims.extend(tensor.dims)
    for value in graph.input:
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if not size.HasField("dim_value"):
                if axis > 0 and length is None:
                    raise ValueError(f"axis {axis} of {value.name} is open")
                size.dim_value = 1 if axis == 0 else int(length or 1)
    for value in graph.output:
        for size in value.type.tensor_type.shape.dim:
            size.Clear()
    fixed = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    fixed.graph.CopyFrom(graph)
    return fixed


def known(model: onnx.ModelProto) -> Shapes:
    """Shape of every value, initializers included, of a model that `of_one_sample` made; it is changed in place.

    What the graph computes from sizes alone is computed here and put in its place as a constant, until nothing new
    comes of it: shape inference does not follow such arithmetic through every operator.
    """
    while True:
        shapes = onnx_graph.known_shapes(model)
        shapes |= {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        if not _fold_sizes(model, shapes):
            return shapes


def _fold_sizes(model: onnx.ModelProto, shapes: Shapes) -> bool:
    """Replace every node whose result follows from known sizes and small constants; whether there was one."""
    from onnx import numpy_helper

    values: dict[str, np.ndarray] = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if math.prod(tensor.dims) <= SMALL
    }
    left = []
    for node in model.graph.node:
        results = _computed(node, values, shapes, model)
        if results is None:
            left.append(node)
            continue
        values |= results
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in results.items())
    folded = len(left) < len(model.graph.node)
    if folded:
        del model.graph.node[:]
        model.graph.node.extend(left)
    return folded


def _computed(
    node: onnx.NodeProto, values: dict[str, np.ndarray], shapes: Shapes, model: onnx.ModelProto
) -> dict[str, np.ndarray] | None:
    """A node's results by name, from the values and shapes known; None where they do not suffice."""
    import numpy as np
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    if node.op_type in ("DequantizeLinear", "QuantizeLinear", "Constant"):
        return None
    if node.op_type == "Shape":
        shape = shapes.get(node.input[0])
        if shape is None or None in shape:
            return None
        start, end = onnx_graph.attribute(node, "start", 0), onnx_graph.attribute(node, "end", None)
        return {node.output[0]: np.array(shape[start:end], dtype=np.int64)}
    inputs = {name: values[name] for name in node.input if name in values}
    if len(inputs) < len({name for name in node.input if name}) or not inputs:
        return None
    ends = [helper.make_value_info(name, helper.make_tensor_type_proto(0, None)) for name in (*inputs, *node.output)]
    graph = helper.make_graph([node], "sizes", ends[: len(inputs)], ends[len(inputs) :])
    results = ReferenceEvaluator(helper.make_model(graph, opset_imports=model.opset_import)).run(None, inputs)
    found = {name: np.asarray(value) for name, value in zip(node.output, results, strict=True)}
    return found if all(value.size <= SMALL for value in found.values()) else None
