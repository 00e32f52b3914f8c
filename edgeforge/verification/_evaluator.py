"""ONNX graphs computed by torch, one operator at a time, independently of any ONNX runtime.

Slow and plain on purpose: it says what a file means. With the numbers a quantizer recorded it computes, from the
float file's own weights, what the quantized file must give.

Covered are the operators that EdgeForge's exports and file quantizers emit for its model families, and near
relatives. Not covered: control flow, sequences, operators of other domains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeforge import onnx_graph

if TYPE_CHECKING:
    import onnx
    import torch


class UnknownOperator(Exception):
    """The evaluator has no meaning for an operator of this graph."""


@dataclass(frozen=True)
class Grid:
    """Where a quantized tensor's numbers lie: (integer - zero_point) * scale, per channel along `axis` if given."""

    type: str
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Grid:
        """One entry of ``quantization.json``."""
        scale = np.asarray(entry["scale"], dtype=np.float32)
        return cls(entry["type"], scale, np.asarray(entry["zero_point"], dtype=entry["type"]), entry["axis"])

    def snap(self, values: torch.Tensor) -> torch.Tensor:
        """The nearest numbers of the grid, in the dtype of `values`."""
        import torch

        limits = np.iinfo(self.type)
        scale = torch.from_numpy(self._shaped(self.scale, values.dim()))
        zero_point = torch.from_numpy(self._shaped(self.zero_point, values.dim())).to(values.dtype)
        integers = (_steps(values, scale) + zero_point).clamp(int(limits.min), int(limits.max))
        return (integers - zero_point) * scale.to(values.dtype)

    def _shaped(self, array: np.ndarray, rank: int) -> np.ndarray:
        return array.reshape(_along(self.axis, rank))


def _along(axis: int | None, rank: int) -> list[int]:
    """The shape in which numbers per `axis` broadcast over a tensor of `rank`."""
    return [] if axis is None else [-1 if other == axis % rank else 1 for other in range(rank)]


def _steps(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Values in steps of `scale`, ties to even, in the dtype of `values`.

    QuantizeLinear divides float32 by float32, which decides ties: pixels often lie halfway between two steps.
    """
    return (values.to(scale.dtype) / scale).round().to(values.dtype)


@dataclass(frozen=True)
class Grids:
    """``quantization.json``: the grids of values and weights by their names in the float file.

    With `dynamic`, the input of a layer whose weight has a grid gets one too, from its own extremes. The bias of a
    layer whose input and weight have grids is rounded to the product of their steps, unless `float_biases` names it.
    """

    dynamic: bool = False
    float_biases: frozenset[str] = frozenset()
    values: Mapping[str, Grid] = field(default_factory=dict)
    weights: Mapping[str, Grid] = field(default_factory=dict)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Grids:
        """The content of the file."""
        return cls(
            dynamic=record["scheme"] == "dynamic",
            values={name: Grid.read(entry) for name, entry in record["values"].items()},
            weights={name: Grid.read(entry) for name, entry in record["weights"].items()},
        )


def evaluate(
    model: onnx.ModelProto, inputs: np.ndarray, *, grids: Grids | None = None, dtype: str = "float64"
) -> np.ndarray:
    """The graph's first output for its first input, every float computed in `dtype`.

    Raises UnknownOperator, naming it.
    """
    import torch

    grids = grids or Grids()
    kind: torch.dtype = getattr(torch, dtype)
    values: dict[str, torch.Tensor] = {}
    for name, array in onnx_graph.initializers(model).items():
        tensor = torch.from_numpy(array.copy())
        tensor = tensor.to(kind) if tensor.is_floating_point() else tensor
        values[name] = grids.weights[name].snap(tensor) if name in grids.weights else tensor
    first = model.graph.input[0].name
    values[first] = torch.from_numpy(inputs).to(kind)
    if first in grids.values:
        values[first] = grids.values[first].snap(values[first])
    with torch.inference_mode():
        for node in model.graph.node:
            _step(node, values, grids, kind)
    return values[model.graph.output[0].name].numpy()


def _step(node: onnx.NodeProto, values: dict[str, torch.Tensor], grids: Grids, kind: torch.dtype) -> None:
    operator = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if operator is None:
        raise UnknownOperator(f"{node.domain or 'ai.onnx'}.{node.op_type}")
    arguments = [values[name] if name else None for name in node.input]
    if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in grids.weights:
        arguments = _on_integers(node, arguments, grids)
    results = operator(_Attributes(node, kind), *arguments)
    for name, result in zip(node.output, results if isinstance(results, tuple) else (results,), strict=True):
        values[name] = grids.values[name].snap(result) if name in grids.values else result


def _on_integers(node: onnx.NodeProto, arguments: list[torch.Tensor | None], grids: Grids) -> list[torch.Tensor | None]:
    """The arguments of a layer as the quantized file has them, beside what already lies on a grid."""
    inputs, weight = arguments[0], grids.weights[node.input[1]]
    assert inputs is not None
    if grids.dynamic:
        return [_dynamic_grid(inputs).snap(inputs), *arguments[1:]]
    grid = grids.values.get(node.input[0])
    bias = arguments[2] if len(arguments) > 2 else None
    if grid is None or bias is None or node.input[2] in grids.float_biases:
        return arguments
    # Sums of products are integers of this step; the bias is rounded to it before it is added.
    step = bias.new_tensor(np.asarray(grid.scale * weight.scale, dtype=np.float32))
    integers = (bias / step).round().clamp(-(2**31), 2**31 - 1)
    return [inputs, arguments[1], integers * step]


def _dynamic_grid(values: torch.Tensor) -> Grid:
    """ONNX's DynamicQuantizeLinear: 0 to 255 span the extremes of all the batch, zero among them."""
    low, high = np.float32(min(float(values.min()), 0.0)), np.float32(max(float(values.max()), 0.0))
    scale = (high - low) / np.float32(255) or np.float32(1)
    zero_point = np.rint(np.clip(-low / scale, 0, 255)).astype(np.uint8)
    return Grid("uint8", np.asarray(scale, dtype=np.float32), np.asarray(zero_point), None)


# -- operators, as https://onnx.ai/onnx/operators defines them


class _Attributes:
    def __init__(self, node: onnx.NodeProto, kind: torch.dtype) -> None:
        self._node = node
        self.kind = kind

    def __call__(self, name: str, default: Any = None) -> Any:
        return onnx_graph.attribute(self._node, name, default)


def _ints(tensor: Any) -> list[int]:
    return [int(item) for item in tensor.reshape(-1).tolist()]


def _spatial(attribute: _Attributes, rank: int) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations, and padding as torch's `pad` wants it (last axis first)."""
    if attribute("auto_pad", b"NOTSET") != b"NOTSET":
        raise UnknownOperator("auto_pad")
    pads = attribute("pads", [0] * 2 * rank)
    padding = [side for axis in reversed(range(rank)) for side in (pads[axis], pads[axis + rank])]
    return list(attribute("strides", [1] * rank)), list(attribute("dilations", [1] * rank)), padding


def _conv(attribute: _Attributes, inputs: Any, weight: Any, bias: Any = None) -> Any:
    from torch.nn import functional

    rank = weight.dim() - 2
    strides, dilations, padding = _spatial(attribute, rank)
    convolve = {1: functional.conv1d, 2: functional.conv2d}[rank]
    padded = functional.pad(inputs, padding)
    return convolve(padded, weight, bias, stride=strides, dilation=dilations, groups=attribute("group", 1))


def _max_pool(attribute: _Attributes, inputs: Any) -> Any:
    from torch.nn import functional

    strides, dilations, padding = _spatial(attribute, 2)
    padded = functional.pad(inputs, padding, value=-float("inf"))
    size, ceil = attribute("kernel_shape"), bool(attribute("ceil_mode", 0))
    return functional.max_pool2d(padded, size, strides, dilation=dilations, ceil_mode=ceil)


def _gemm(attribute: _Attributes, left: Any, right: Any, bias: Any = None) -> Any:
    left = left.T if attribute("transA", 0) else left
    right = right.T if attribute("transB", 0) else right
    product = attribute("alpha", 1.0) * (left @ right)
    return product if bias is None else product + attribute("beta", 1.0) * bias


def _clip(_: _Attributes, inputs: Any, low: Any = None, high: Any = None) -> Any:
    return inputs.clamp(None if low is None else low.item(), None if high is None else high.item())


def _reduce_mean(attribute: _Attributes, inputs: Any, axes: Any = None) -> Any:
    where = list(range(inputs.dim())) if axes is None else _ints(axes)
    return inputs.mean(dim=where, keepdim=bool(attribute("keepdims", 1)))


def _reshape(attribute: _Attributes, inputs: Any, shape: Any) -> Any:
    sizes = _ints(shape)
    if not attribute("allowzero", 0):
        sizes = [inputs.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return inputs.reshape(sizes)


def _layer_norm(attribute: _Attributes, inputs: Any, weight: Any, bias: Any = None) -> Any:
    from torch.nn import functional

    axis = attribute("axis", -1) % inputs.dim()
    return functional.layer_norm(inputs, list(inputs.shape[axis:]), weight, bias, attribute("epsilon", 1e-5))


def _gelu(attribute: _Attributes, inputs: Any) -> Any:
    from torch.nn import functional

    return functional.gelu(inputs, approximate=attribute("approximate", b"none").decode())


def _shape(attribute: _Attributes, inputs: Any) -> Any:
    import torch

    sizes = list(inputs.shape)[attribute("start", 0) : attribute("end", inputs.dim())]
    return torch.tensor(sizes, dtype=torch.int64)


def _gather(attribute: _Attributes, inputs: Any, indices: Any) -> Any:
    import torch

    axis = attribute("axis", 0) % inputs.dim()
    picked = torch.index_select(inputs, axis, indices.reshape(-1) % inputs.shape[axis])
    return picked.reshape(*inputs.shape[:axis], *indices.shape, *inputs.shape[axis + 1 :])


def _concat(attribute: _Attributes, *parts: Any) -> Any:
    import torch

    return torch.cat(parts, dim=attribute("axis"))


def _expand(_: _Attributes, inputs: Any, shape: Any) -> Any:
    import torch

    # ONNX broadcasts both ways: a size of one in `shape` keeps the input's.
    return inputs * torch.ones(_ints(shape), dtype=inputs.dtype)


def _cast(attribute: _Attributes, inputs: Any) -> Any:
    import onnx

    if attribute("to") != onnx.TensorProto.FLOAT:
        raise UnknownOperator("Cast to other than float")
    return inputs.to(attribute.kind)


def _quantize(attribute: _Attributes, inputs: Any, scale: Any, zero_point: Any) -> Any:
    import torch

    limits, shape = torch.iinfo(zero_point.dtype), _along(attribute("axis", 1) if scale.dim() else None, inputs.dim())
    steps = _steps(inputs, scale.to(torch.float32).reshape(shape)) + zero_point.to(inputs.dtype).reshape(shape)
    return steps.clamp(limits.min, limits.max).to(zero_point.dtype)


def _dequantize(attribute: _Attributes, integers: Any, scale: Any, zero_point: Any = None) -> Any:
    if attribute("block_size", 0):
        raise UnknownOperator("DequantizeLinear in blocks")
    shape = _along(attribute("axis", 1) if scale.dim() else None, integers.dim())
    offset = 0 if zero_point is None else zero_point.to(scale.dtype).reshape(shape)
    return (integers.to(scale.dtype) - offset) * scale.reshape(shape)


def _dynamic_quantize(attribute: _Attributes, inputs: Any) -> Any:
    import torch

    grid = _dynamic_grid(inputs)
    scale, zero_point = torch.tensor(grid.scale), torch.tensor(grid.zero_point)
    return _quantize(attribute, inputs, scale, zero_point), scale.to(attribute.kind), zero_point


def _matmul_integer(attribute: _Attributes, left: Any, right: Any, left_zero: Any = 0, right_zero: Any = 0) -> Any:
    # In the float kind, which holds these sums of at most 24 bits and the length exactly where it is float64.
    return (left.to(attribute.kind) - left_zero) @ (right.to(attribute.kind) - right_zero)


def _space_to_depth(attribute: _Attributes, inputs: Any) -> Any:
    size = attribute("blocksize")
    count, channels, height, width = inputs.shape
    squares = inputs.reshape(count, channels, height // size, size, width // size, size).permute(0, 3, 5, 1, 2, 4)
    return squares.reshape(count, channels * size * size, height // size, width // size)


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Add": lambda _, left, right: left + right,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": lambda _, left, right: left / right,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "Expand": _expand,
    "Flatten": lambda attribute, inputs: inputs.reshape(inputs.shape[: attribute("axis", 1)].numel(), -1),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _, inputs: inputs.mean(dim=tuple(range(2, inputs.dim())), keepdim=True),
    "Identity": lambda _, inputs: inputs,
    "LayerNormalization": _layer_norm,
    "MatMul": lambda _, left, right: left @ right,
    "MatMulInteger": _matmul_integer,
    "MaxPool": _max_pool,
    "Mul": lambda _, left, right: left * right,
    "QuantizeLinear": _quantize,
    "ReduceMean": _reduce_mean,
    "Relu": lambda _, inputs: inputs.clamp(min=0),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": lambda _, inputs: inputs.sigmoid(),
    "Softmax": lambda attribute, inputs: inputs.softmax(dim=attribute("axis", -1)),
    "SpaceToDepth": _space_to_depth,
    "Sub": lambda _, left, right: left - right,
    "Tanh": lambda _, inputs: inputs.tanh(),
    "Transpose": lambda attribute, inputs: inputs.permute(attribute("perm", list(range(inputs.dim()))[::-1])),
}
