"""Quantize/dequantize pairs in an ONNX graph, placed by ONNX Runtime's quantizer."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeforge import onnx_graph
from edgeforge.core.extras import require
from edgeforge.device import Layout
from edgeforge.quantizers._calibration import Range
from edgeforge.quantizers._record import Numbers

if TYPE_CHECKING:
    import onnx

LAYERS = ("Conv", "Gemm", "MatMul")
"""Operators with weights. All that is quantized where values are normalised at run time: see `operators_of`."""

CONVOLUTIONAL = (
    *LAYERS,
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "GlobalAveragePool",
    "MaxPool",
    "Mul",
    "Relu",
    "Reshape",
    "Sigmoid",
    "Transpose",
)
"""Operators quantized in convolutional networks, so that values stay integers from one layer to the next."""


@dataclass(frozen=True)
class Placed:
    """A quantized graph, and the numbers it was given, by the names of the float graph's values and constants.

    The values in `layers_only` are rounded for the layers that multiply them; the others for all that read them.
    """

    model: onnx.ModelProto
    values: Mapping[str, Numbers]
    weights: Mapping[str, Numbers]
    layers_only: Sequence[str]


# -- the float graph


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose nodes all have names and whose global means are GlobalAveragePool; names of values stay."""
    import onnx

    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    constants = onnx_graph.initializers(prepared)
    shapes = onnx_graph.known_shapes(prepared)
    for index, node in enumerate(prepared.graph.node):
        node.name = node.name or f"node {index}"
        if node.op_type == "ReduceMean" and _is_global_mean(node, constants, shapes):
            node.op_type = "GlobalAveragePool"
            node.ClearField("attribute")
            del node.input[1:]
    return prepared


def _is_global_mean(
    node: onnx.NodeProto, constants: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int | None, ...]]
) -> bool:
    rank = len(shapes.get(node.input[0], ()))
    if rank != 4 or len(node.input) < 2 or node.input[1] not in constants:
        return False
    axes = {int(axis) % rank for axis in constants[node.input[1]].reshape(-1)}
    return axes == {2, 3} and onnx_graph.attribute(node, "keepdims", 1) == 1


def layers(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that multiply by a constant weight, in order."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type in LAYERS and node.input[1] in constants]


def operators_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """Which operators to quantize.

    All of them in convolutional networks. Where LayerNormalization renews the range of values at run time
    (transformers, ConvNeXt), only the layers: the residual stream has outliers that eight bits do not hold.
    """
    normalised = any(node.op_type == "LayerNormalization" for node in model.graph.node)
    return LAYERS if normalised else CONVOLUTIONAL


def touched(model: onnx.ModelProto, operators: Collection[str]) -> list[str]:
    """Names of the float values that these operators read or write: what needs a range."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    floats = {
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    names = [name for node in model.graph.node if node.op_type in operators for name in (*node.input, *node.output)]
    return [name for name in dict.fromkeys(names) if name in floats]


# -- placing


def place(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    *,
    layout: Layout,
    per_channel: bool,
    kept: Collection[str] = (),
    only: Collection[str] = (),
) -> Placed:
    """Quantize the nodes of a prepared graph but `kept` (all layers but `only`, where given) to eight bits.

    Activations are u8 on x86 (its fast instruction multiplies u8 by s8) and s8 on Arm; weights are s8, symmetric.
    """
    import onnx

    quantization = require("onnxruntime.quantization", "onnx")
    calibrate = require("onnxruntime.quantization.calibrate", "onnx")
    qdq = require("onnxruntime.quantization.qdq_quantizer", "onnx")
    operators = operators_of(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # Products of two computed values (attention) stay in float: softmax weights below 1/255 would vanish.
    computed = {node.name for node in model.graph.node if node.op_type in LAYERS} - set(layers(model))
    # What a product gives to a float operator is rounded for nothing: in float it is faster and nearer.
    unrounded = [] if "Add" in operators else ["Gemm", "MatMul"]
    data = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    kind = quantization.QuantType
    with _quiet():
        quantizer = qdq.QDQQuantizer(
            copy,
            per_channel,
            False,
            kind.QInt8,
            kind.QUInt8 if layout == "x86" else kind.QInt8,
            calibrate.TensorsData(calibrate.CalibrationMethod.MinMax, data),
            list(only),
            [*kept, *computed],
            list(operators),
            {
                "OpTypesToExcludeOutputQuantization": unrounded,
                "TensorQuantOverrides": _dead_channels(model, kept, per_channel),
            },
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    quantized: onnx.ModelProto = quantizer.model.model
    _restore_outputs(quantized)
    restored = () if "Add" in operators else _restore_readers(quantized, set(only or layers(model)) - set(kept))
    return Placed(quantized, *_recorded(quantized), restored)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without advice on the root logger to use steps that the exporter already did."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _dead_channels(model: onnx.ModelProto, kept: Collection[str], per_channel: bool) -> dict[str, list[dict[str, Any]]]:
    """Scales for weights with channels of zeros, which would get 1: their bias would be rounded to input steps.

    Such channels are what regularization leaves of unneeded ones; their bias still matters.
    """
    quant_type = require("onnxruntime.quantization", "onnx").QuantType.QInt8
    constants = onnx_graph.initializers(model)
    found: dict[str, list[dict[str, Any]]] = {}
    for node in model.graph.node:
        if not per_channel or node.op_type not in ("Conv", "Gemm") or node.name in kept:
            continue
        weight = constants.get(node.input[1])
        if weight is None:
            continue
        axis = 1 if node.op_type == "Gemm" and not onnx_graph.attribute(node, "transB", 0) else 0
        largest = np.abs(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)).max(axis=1)
        if (largest == 0).any() and (largest > 0).any():
            scales = np.where(largest > 0, largest, largest[largest > 0].min()).astype(np.float32) / np.float32(127)
            entries = [{"scale": scale, "zero_point": np.int8(0), "quant_type": quant_type} for scale in scales]
            found[node.input[1]] = [{**entries[0], "axis": axis}, *entries[1:]]
    return found


def _restore_outputs(model: onnx.ModelProto) -> None:
    """Give the graph's outputs back their float values: the last rounding and conversion served nobody."""
    graph = model.graph
    outputs = {value.name for value in graph.output}
    found = pairs(model)
    for name in outputs & found.keys():
        quantize, dequantize = found[name]
        source = quantize.input[0]
        for node in graph.node:
            node.input[:] = [name if item == source else item for item in node.input]
            node.output[:] = [name if item == source else item for item in node.output]
        graph.node.remove(quantize)
        graph.node.remove(dequantize)


def _restore_readers(model: onnx.ModelProto, quantized: Collection[str]) -> list[str]:
    """Of values that `quantized` layers multiply, give all else the float ones back: no residual is to be rounded.

    Returns the values' names.
    """
    readers = onnx_graph.consumers(model)
    restored = []
    for name, (quantize, _) in pairs(model).items():
        others = [node for node in readers.get(name, ()) if node.name not in quantized]
        if not others or len(others) == len(readers[name]):
            continue
        restored.append(quantize.input[0])
        for node in others:
            node.input[:] = [quantize.input[0] if item == name else item for item in node.input]
    return restored


def pairs(model: onnx.ModelProto) -> dict[str, tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Dequantized value -> its (QuantizeLinear, DequantizeLinear)."""
    quantized = {node.output[0]: node for node in model.graph.node if node.op_type == "QuantizeLinear"}
    return {
        node.output[0]: (quantized[node.input[0]], node)
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in quantized
    }


def _recorded(model: onnx.ModelProto) -> tuple[dict[str, Numbers], dict[str, Numbers]]:
    """The numbers of every quantized value and of every quantized weight."""
    constants = onnx_graph.initializers(model)
    values = {quantize.input[0]: _numbers(quantize, constants) for quantize, _ in pairs(model).values()}
    weights = {
        node.input[0].removesuffix("_quantized"): _numbers(node, constants)
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in constants
        and constants[node.input[0]].dtype != np.int32  # biases follow from their layer's input and weight
    }
    return values, weights


def _numbers(node: onnx.NodeProto, constants: Mapping[str, np.ndarray]) -> Numbers:
    scale, zero_point = constants[node.input[1]], constants[node.input[2]]
    axis = int(onnx_graph.attribute(node, "axis", 1)) if scale.ndim else None
    return Numbers(str(zero_point.dtype), scale, zero_point, axis)
