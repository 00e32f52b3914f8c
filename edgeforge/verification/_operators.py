"""What each ONNX operator means, said by torch, as https://onnx.ai/onnx/operators defines them.

Covered are the operators that EdgeForge's exports and file quantizers emit for its model families, and near
relatives, with two of ONNX Runtime's own. Not covered: control flow, sequences.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from edgeforge import onnx_graph
from edgeforge.verification._grids import along, dynamic_grid, steps

if TYPE_CHECKING:
    import onnx
    import torch


class UnknownOperator(Exception):
    """The evaluator has no meaning for an operator of this graph."""


def operator_of(node: onnx.NodeProto) -> Callable[..., Any]:
    """(attributes, inputs...) -> the output, or a tuple of them. Raises UnknownOperator, naming it."""
    known = {"": OPERATORS, "ai.onnx": OPERATORS, "com.microsoft": MICROSOFT}.get(node.domain, {})
    if node.op_type not in known:
        raise UnknownOperator(f"{node.domain or 'ai.onnx'}.{node.op_type}")
    return known[node.op_type]


class Attributes:
    """A node's attributes, called by name; `kind` is what floats are computed in."""

    def __init__(self, node: onnx.NodeProto, kind: torch.dtype) -> None:
        self._node = node
        self.kind = kind

    def __call__(self, name: str, default: Any = None) -> Any:
        return onnx_graph.attribute(self._node, name, default)


def _ints(tensor: Any) -> list[int]:
    return [int(item) for item in tensor.reshape(-1).tolist()]


def _spatial(attribute: Attributes, rank: int) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations, and padding as torch's `pad` wants it (last axis first)."""
    if attribute("auto_pad", b"NOTSET") != b"NOTSET":
        raise UnknownOperator("auto_pad")
    pads = attribute("pads", [0] * 2 * rank)
    padding = [side for axis in reversed(range(rank)) for side in (pads[axis], pads[axis + rank])]
    return list(attribute("strides", [1] * rank)), list(attribute("dilations", [1] * rank)), padding


def _conv(attribute: Attributes, inputs: Any, weight: Any, bias: Any = None) -> Any:
    from torch.nn import functional

    rank = weight.dim() - 2
    strides, dilations, padding = _spatial(attribute, rank)
    convolve = {1: functional.conv1d, 2: functional.conv2d}[rank]
    padded = functional.pad(inputs, padding)
    return convolve(padded, weight, bias, stride=strides, dilation=dilations, groups=attribute("group", 1))


def _max_pool(attribute: Attributes, inputs: Any) -> Any:
    from torch.nn import functional

    strides, dilations, padding = _spatial(attribute, 2)
    padded = functional.pad(inputs, padding, value=-float("inf"))
    size, ceil = attribute("kernel_shape"), bool(attribute("ceil_mode", 0))
    return functional.max_pool2d(padded, size, strides, dilation=dilations, ceil_mode=ceil)


def _gemm(attribute: Attributes, left: Any, right: Any, bias: Any = None) -> Any:
    left = left.T if attribute("transA", 0) else left
    right = right.T if attribute("transB", 0) else right
    product = attribute("alpha", 1.0) * (left @ right)
    return product if bias is None else product + attribute("beta", 1.0) * bias


def _clip(_: Attributes, inputs: Any, low: Any = None, high: Any = None) -> Any:
    return inputs.clamp(None if low is None else low.item(), None if high is None else high.item())


def _reduce_mean(attribute: Attributes, inputs: Any, axes: Any = None) -> Any:
    where = list(range(inputs.dim())) if axes is None else _ints(axes)
    return inputs.mean(dim=where, keepdim=bool(attribute("keepdims", 1)))


def _reshape(attribute: Attributes, inputs: Any, shape: Any) -> Any:
    sizes = _ints(shape)
    if not attribute("allowzero", 0):
        sizes = [inputs.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return inputs.reshape(sizes)


def _layer_norm(attribute: Attributes, inputs: Any, weight: Any, bias: Any = None) -> Any:
    from torch.nn import functional

    axis = attribute("axis", -1) % inputs.dim()
    return functional.layer_norm(inputs, list(inputs.shape[axis:]), weight, bias, attribute("epsilon", 1e-5))


def _gelu(attribute: Attributes, inputs: Any) -> Any:
    from torch.nn import functional

    return functional.gelu(inputs, approximate=attribute("approximate", b"none").decode())


def _shape(attribute: Attributes, inputs: Any) -> Any:
    import torch

    sizes = list(inputs.shape)[attribute("start", 0) : attribute("end", inputs.dim())]
    return torch.tensor(sizes, dtype=torch.int64)


def _gather(attribute: Attributes, inputs: Any, indices: Any) -> Any:
    import torch

    axis = attribute("axis", 0) % inputs.dim()
    picked = torch.index_select(inputs, axis, indices.reshape(-1) % inputs.shape[axis])
    return picked.reshape(*inputs.shape[:axis], *indices.shape, *inputs.shape[axis + 1 :])


def _concat(attribute: Attributes, *parts: Any) -> Any:
    import torch

    return torch.cat(parts, dim=attribute("axis"))


def _expand(_: Attributes, inputs: Any, shape: Any) -> Any:
    import torch

    # ONNX broadcasts both ways: a size of one in `shape` keeps the input's.
    return inputs.broadcast_to(torch.broadcast_shapes(inputs.shape, _ints(shape)))  # type: ignore[no-untyped-call]


def _cast(attribute: Attributes, inputs: Any) -> Any:
    import torch
    from onnx import TensorProto

    kinds = {
        TensorProto.FLOAT: attribute.kind,
        TensorProto.BOOL: torch.bool,
        TensorProto.INT32: torch.int32,
        TensorProto.INT64: torch.int64,
    }
    if attribute("to") not in kinds:
        raise UnknownOperator(f"Cast to {TensorProto.DataType.Name(attribute('to'))}")
    return inputs.to(kinds[attribute("to")])


def _slice(_: Attributes, inputs: Any, starts: Any, ends: Any, axes: Any = None, strides: Any = None) -> Any:
    import torch

    where = list(range(len(starts))) if axes is None else _ints(axes)
    by = [1] * len(where) if strides is None else _ints(strides)
    for start, end, axis, stride in zip(_ints(starts), _ints(ends), where, by, strict=True):
        kept = torch.tensor(range(inputs.shape[axis])[start:end:stride], dtype=torch.int64)
        inputs = inputs.index_select(axis, kept)
    return inputs


def _unsqueeze(_: Attributes, inputs: Any, axes: Any) -> Any:
    rank = inputs.dim() + axes.numel()
    for axis in sorted(item % rank for item in _ints(axes)):
        inputs = inputs.unsqueeze(axis)
    return inputs


def _cumulative_sum(attribute: Attributes, inputs: Any, axis: Any) -> Any:
    if attribute("exclusive", 0) or attribute("reverse", 0):
        raise UnknownOperator("CumSum other than forward")
    return inputs.cumsum(int(axis)).to(inputs.dtype)


def _gather_elements(attribute: Attributes, inputs: Any, indices: Any) -> Any:
    axis = attribute("axis", 0)
    return inputs.gather(axis, indices % inputs.shape[axis])


def _gather_nd(attribute: Attributes, inputs: Any, indices: Any) -> Any:
    if attribute("batch_dims", 0):
        raise UnknownOperator("GatherND in batches")
    return inputs[tuple(indices.unbind(-1))]


def _divide(_: Attributes, left: Any, right: Any) -> Any:
    return left.div(right, rounding_mode=None if left.is_floating_point() else "trunc")


def _range(_: Attributes, start: Any, limit: Any, delta: Any) -> Any:
    import torch

    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _largest(_: Attributes, *inputs: Any) -> Any:
    import torch

    return functools.reduce(torch.maximum, inputs)


def _where(_: Attributes, condition: Any, left: Any, right: Any) -> Any:
    import torch

    return torch.where(condition, left, right)


def _quantize(attribute: Attributes, inputs: Any, scale: Any, zero_point: Any) -> Any:
    import torch

    limits, shape = torch.iinfo(zero_point.dtype), along(attribute("axis", 1) if scale.dim() else None, inputs.dim())
    integers = steps(inputs, scale.to(torch.float32).reshape(shape)) + zero_point.to(inputs.dtype).reshape(shape)
    return integers.clamp(limits.min, limits.max).to(zero_point.dtype)


def _dequantize(attribute: Attributes, integers: Any, scale: Any, zero_point: Any = None) -> Any:
    block = attribute("block_size", 0)
    if block and zero_point is not None:
        raise UnknownOperator("DequantizeLinear in blocks with zero points")
    if block:
        return integers.to(scale.dtype) * _spread(scale, block, integers.shape, attribute("axis", 1))
    shape = along(attribute("axis", 1) if scale.dim() else None, integers.dim())
    offset = 0 if zero_point is None else zero_point.to(scale.dtype).reshape(shape)
    return (integers.to(scale.dtype) - offset) * scale.reshape(shape)


def _spread(scales: Any, block: int, shape: Any, axis: int) -> Any:
    """Scales per block along `axis`, repeated for every number of a tensor of `shape`."""
    return scales.repeat_interleave(block, dim=axis).narrow(axis, 0, shape[axis])


def _dynamic_quantize(attribute: Attributes, inputs: Any) -> Any:
    import torch

    grid = dynamic_grid(inputs)
    scale, zero_point = torch.tensor(grid.scale), torch.tensor(grid.zero_point)
    return _quantize(attribute, inputs, scale, zero_point), scale.to(attribute.kind), zero_point


def _matmul_integer(attribute: Attributes, left: Any, right: Any, left_zero: Any = 0, right_zero: Any = 0) -> Any:
    # In the float kind, which holds these sums of at most 24 bits and the length exactly where it is float64.
    return (left.to(attribute.kind) - left_zero) @ (right.to(attribute.kind) - right_zero)


def _space_to_depth(attribute: Attributes, inputs: Any) -> Any:
    size = attribute("blocksize")
    count, channels, height, width = inputs.shape
    squares = inputs.reshape(count, channels, height // size, size, width // size, size).permute(0, 3, 5, 1, 2, 4)
    return squares.reshape(count, channels * size * size, height // size, width // size)


# -- com.microsoft, as ONNX Runtime's ContribOperators.md defines it


def _unpacked(packed: Any, bits: int) -> Any:
    """uint8 with `bits` of each number, lower half byte first -> integers about zero, int16, along the last axis."""
    import torch

    if packed.dtype != torch.uint8 or bits not in (4, 8):
        raise UnknownOperator(f"{bits}-bit integers in {packed.dtype}")
    numbers = packed if bits == 8 else torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
    return numbers.to(torch.int16) - 2 ** (bits - 1)


def _matmul_bits(attribute: Attributes, inputs: Any, packed: Any, scales: Any, *optional: Any) -> Any:
    """Inputs in float, whatever `accuracy_level` allows a runtime to round them to."""
    zeros, order, bias = (*optional, None, None, None)[:3]
    if zeros is not None or order is not None:
        raise UnknownOperator("MatMulNBits with zero points or an order")
    product = inputs @ _block_weight(attribute, packed, scales).T
    return product if bias is None else product + bias


def _block_weight(attribute: Attributes, packed: Any, scales: Any) -> Any:
    rows, columns = attribute("N"), attribute("K")
    integers = _unpacked(packed, attribute("bits", 4)).reshape(rows, -1)[:, :columns]
    return integers.to(scales.dtype) * _spread(scales.reshape(rows, -1), attribute("block_size"), (rows, columns), 1)


def weight_of(node: onnx.NodeProto, packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """What a MatMulNBits multiplies by, (outputs, inputs), in the dtype of `scales`."""
    weight: torch.Tensor = _block_weight(Attributes(node, scales.dtype), packed, scales)
    return weight


def table_of(node: onnx.NodeProto, packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The whole table that a GatherBlockQuantized reads rows of, (rows, columns), in the dtype of `scales`."""
    import torch

    every = torch.arange(len(packed))
    table: torch.Tensor = _gather_blocks(Attributes(node, scales.dtype), packed, every, scales)
    return table


def _gather_blocks(attribute: Attributes, packed: Any, indices: Any, scales: Any, zeros: Any = None) -> Any:
    if zeros is not None or attribute("gather_axis", 0) != 0 or attribute("quantize_axis", 1) != 1:
        raise UnknownOperator("GatherBlockQuantized other than of rows without zero points")
    integers, scales = _unpacked(packed[indices], attribute("bits", 4)), scales[indices]
    return integers.to(scales.dtype) * _spread(scales, attribute("block_size", 128), integers.shape, -1)


MICROSOFT: Mapping[str, Callable[..., Any]] = {
    "GatherBlockQuantized": _gather_blocks,
    "MatMulNBits": _matmul_bits,
}

OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Add": lambda _, left, right: left + right,
    "And": lambda _, left, right: left & right,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "CumSum": _cumulative_sum,
    "DequantizeLinear": _dequantize,
    "Div": _divide,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "Equal": lambda _, left, right: left == right,
    "Erf": lambda _, inputs: inputs.erf(),
    "Expand": _expand,
    "Flatten": lambda attribute, inputs: inputs.reshape(inputs.shape[: attribute("axis", 1)].numel(), -1),
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _, inputs: inputs.mean(dim=tuple(range(2, inputs.dim())), keepdim=True),
    "Greater": lambda _, left, right: left > right,
    "GreaterOrEqual": lambda _, left, right: left >= right,
    "Identity": lambda _, inputs: inputs,
    "LayerNormalization": _layer_norm,
    "Less": lambda _, left, right: left < right,
    "LessOrEqual": lambda _, left, right: left <= right,
    "MatMul": lambda _, left, right: left @ right,
    "MatMulInteger": _matmul_integer,
    "Max": _largest,
    "MaxPool": _max_pool,
    "Mul": lambda _, left, right: left * right,
    "Not": lambda _, inputs: ~inputs,
    "Or": lambda _, left, right: left | right,
    "Pow": lambda _, left, right: left**right,
    "QuantizeLinear": _quantize,
    "Range": _range,
    "ReduceMean": _reduce_mean,
    "Relu": lambda _, inputs: inputs.clamp(min=0),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": lambda _, inputs: inputs.sigmoid(),
    "Slice": _slice,
    "Softmax": lambda attribute, inputs: inputs.softmax(dim=attribute("axis", -1)),
    "SpaceToDepth": _space_to_depth,
    "Sqrt": lambda _, inputs: inputs.sqrt(),
    "Squeeze": lambda _, inputs, axes=None: inputs.squeeze() if axes is None else inputs.squeeze(_ints(axes)),
    "Sub": lambda _, left, right: left - right,
    "Tanh": lambda _, inputs: inputs.tanh(),
    "Transpose": lambda attribute, inputs: inputs.permute(attribute("perm", list(range(inputs.dim()))[::-1])),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
