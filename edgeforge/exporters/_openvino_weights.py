"""Weight-only quantization in OpenVINO: the integers that a quantizer chose in torch, written as integers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeforge import openvino_graph
from edgeforge.core.errors import ModelError
from edgeforge.models.quantized_weights import LinearWeight, QuantizedWeights
from edgeforge.openvino_graph import load_openvino

if TYPE_CHECKING:
    import openvino
    from openvino import Node


def write_quantized(model: openvino.Model, quantized: QuantizedWeights) -> float:
    """Replace, in place, each constant that equals a quantized weight (or its transpose) by its integers.

    Matrix products get their weights as (outputs, inputs), which the plugin multiplies as integers. Returns the share
    of the graph's float numbers that became integers, in percent. Raises ModelError where a quantized weight is
    nowhere in the graph: it would be shipped in float under the name of a quantized model.
    """
    floats = openvino_graph.numbers(model)
    constants = [node for node in model.get_ordered_ops() if _is_float(node)]
    covered = 0
    for name, weight in sorted(quantized.weights.items()):
        if not isinstance(weight, LinearWeight):
            raise ModelError(f"{name}: OpenVINO has no palettes", remedy="use method: linear, or export to coreml")
        places = list(_equal(constants, weight.dequantize()))
        if not places:
            raise ModelError(
                f"{name} is quantized, but the exported graph has no such constant",
                remedy="keep this layer in float, or report the model's family",
            )
        for node, transposed in places:
            _replace(node, weight, transposed=transposed)
            covered += weight.integers.size
    model.validate_nodes_and_infer_types()
    return 100 * covered / floats


def _is_float(node: Node) -> bool:
    return bool(node.get_type_name() == "Constant" and node.get_element_type() == load_openvino().Type.f32)


def _equal(constants: list[Node], weight: np.ndarray) -> Iterator[tuple[Node, bool]]:
    """The constants equal to `weight`, to the bit, whatever their shape, and whether they are transposed."""
    for node in constants:
        array = np.asarray(node.data)
        if array.size != weight.size:
            continue
        if np.array_equal(array.reshape(weight.shape), weight):
            yield node, False
        elif weight.ndim == 2 and array.shape == weight.T.shape and np.array_equal(array, weight.T):
            yield node, True


def _replace(node: Node, weight: LinearWeight, *, transposed: bool) -> None:
    from openvino import opset13 as ops

    shape = weight.shape if transposed else tuple(node.get_output_shape(0))
    decoded = _decoded(weight, shape)
    flipped = None
    for reader in list(node.output(0).get_target_inputs()):
        product = reader.get_node()
        if not transposed:
            reader.replace_source_output(decoded.output(0))
        elif product.get_type_name() == "MatMul" and reader.get_index() == 1:
            sides = product.get_attributes()
            turned = ops.matmul(product.input_value(0), decoded, sides["transpose_a"], not sides["transpose_b"])
            turned.set_friendly_name(product.get_friendly_name())
            product.output(0).replace(turned.output(0))
        else:
            flipped = flipped or ops.transpose(decoded, np.array([1, 0]))
            reader.replace_source_output(flipped.output(0))


def _decoded(weight: LinearWeight, shape: tuple[int, ...]) -> Node:
    """Integers times scales, of `shape`: the weight's own, or (groups, outputs of a group, ...)."""
    from openvino import opset13 as ops

    channels, blocks = weight.scales.shape[:2]
    outputs = shape[:1] if shape[0] == channels else shape[:2]
    kept = shape
    if blocks > 1:
        outputs = (channels, blocks)
        kept = (*outputs, weight.shape[1] // blocks, *weight.shape[2:])
    scales = weight.scales.astype(np.float32).reshape(*outputs, *[1] * (len(kept) - len(outputs)))
    node = ops.multiply(ops.convert(_integers(weight, kept), "f32"), ops.constant(scales))
    return node if kept == shape else ops.reshape(node, np.array(shape, dtype=np.int64), False)


def _integers(weight: LinearWeight, shape: tuple[int, ...]) -> Any:
    ov = load_openvino()
    if weight.bits == 8:
        return ov.op.Constant(np.ascontiguousarray(weight.integers.reshape(shape)))
    return ov.op.Constant(ov.Type.i4, ov.Shape(list(shape)), weight.integers.reshape(-1).tolist())
