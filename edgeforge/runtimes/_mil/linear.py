"""Operations that multiply with weights or slide over a picture: linear, convolution, pooling, attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeforge.runtimes._mil.shape import integers

_CONV = (functional.conv1d, functional.conv2d, functional.conv3d)
_CONV_TRANSPOSE = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
_MAX_POOL = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
_AVG_POOL = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.linear(x, weight, bias)


def matmul(x: Tensor, y: Tensor, transpose_x: Tensor | bool = False, transpose_y: Tensor | bool = False) -> Tensor:
    left = x.transpose(-1, -2) if bool(transpose_x) else x
    right = y.transpose(-1, -2) if bool(transpose_y) else y
    return left @ right


def einsum(values: Sequence[Tensor], equation: str) -> Tensor:
    return torch.einsum(equation, *values)


def _amounts(pad_type: str, pad: Tensor | None, sizes: Sequence[int], windows: Sequence[tuple[int, int]]) -> list[int]:
    """Padding before and after each spatial axis. `windows`: reach of the kernel and stride on each axis."""
    if pad_type == "valid":
        return [0] * 2 * len(sizes)
    if pad_type == "custom":
        if pad is None:
            raise ValueError("pad is missing")
        return integers(pad)
    found = []
    for size, (reach, stride) in zip(sizes, windows, strict=True):
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        less, more = total // 2, total - total // 2
        found += {"same": [less, more], "same_lower": [more, less]}[pad_type]
    return found


def _padded(x: Tensor, amounts: Sequence[int], value: float = 0.0) -> Tensor:
    if not any(amounts):
        return x
    axes = range(len(amounts) // 2)
    return functional.pad(x, [amounts[2 * axis + end] for axis in reversed(axes) for end in (0, 1)], value=value)


def _per_axis(values: Tensor | None, count: int) -> list[int]:
    return [1] * count if values is None else integers(values)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | int = 1,
) -> Tensor:
    """x (N, C, spatial...), weight (out, C / groups, spatial...)."""
    count = x.dim() - 2
    steps, gaps = _per_axis(strides, count), _per_axis(dilations, count)
    reach = [(size - 1) * gap + 1 for size, gap in zip(weight.shape[2:], gaps, strict=True)]
    amounts = _amounts(pad_type, pad, x.shape[2:], list(zip(reach, steps, strict=True)))
    before, after = amounts[::2], amounts[1::2]
    if before != after:
        x, before = _padded(x, amounts), [0] * count
    return _CONV[count - 1](x, weight, bias, steps, before, gaps, int(groups))


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Tensor | None = None,
    output_shape: Tensor | None = None,
    pad_type: str = "valid",
    strides: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | int = 1,
) -> Tensor:
    """x (N, C, spatial...), weight (C, out / groups, spatial...); padding is cut from the full result."""
    if pad_type not in ("valid", "custom") or output_shape is not None:
        raise ValueError(f"padding by '{pad_type}' or output_shape is not known here")
    count = x.dim() - 2
    steps, gaps = _per_axis(strides, count), _per_axis(dilations, count)
    full = _CONV_TRANSPOSE[count - 1](x, weight, bias, steps, 0, 0, int(groups), gaps)
    amounts = _amounts(pad_type, pad, x.shape[2:], [(1, 1)] * count)
    return _padded(full, [-amount for amount in amounts])


def _fits(amounts: Sequence[int], kernel: Sequence[int]) -> bool:
    """Whether torch's pooling takes this padding itself."""
    before = amounts[::2]
    return before == amounts[1::2] and all(2 * pad <= size for pad, size in zip(before, kernel, strict=True))


def max_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    ceil_mode: Tensor | bool = False,
) -> Tensor:
    count = x.dim() - 2
    kernel, steps = integers(kernel_sizes), _per_axis(strides, count)
    amounts = _amounts(pad_type, pad, x.shape[2:], list(zip(kernel, steps, strict=True)))
    before = amounts[::2]
    if not _fits(amounts, kernel):
        x, before = _padded(x, amounts, value=float("-inf")), [0] * count
    return _MAX_POOL[count - 1](x, kernel, steps, before, ceil_mode=bool(ceil_mode))


def avg_pool(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    exclude_padding_from_average: Tensor | bool = False,
    ceil_mode: Tensor | bool = False,
) -> Tensor:
    count = x.dim() - 2
    kernel, steps = integers(kernel_sizes), _per_axis(strides, count)
    amounts = _amounts(pad_type, pad, x.shape[2:], list(zip(kernel, steps, strict=True)))
    pool, excluded = _AVG_POOL[count - 1], bool(exclude_padding_from_average)
    if _fits(amounts, kernel):
        return pool(x, kernel, steps, amounts[::2], bool(ceil_mode), not excluded)
    if bool(ceil_mode):
        raise ValueError("uneven padding together with ceil_mode is not known here")
    mean = pool(_padded(x, amounts), kernel, steps)
    return mean / pool(_padded(torch.ones_like(x), amounts), kernel, steps) if excluded else mean


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """softmax(query keyᵀ / √E + mask) value, as documented: a row that is masked everywhere gives NaN."""
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(~attn_mask, float("-inf"))
    return functional.softmax(scores if attn_mask is None else scores + attn_mask, dim=-1) @ value


OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "avg_pool": avg_pool,
    "conv": conv,
    "conv_transpose": conv_transpose,
    "einsum": einsum,
    "linear": linear,
    "matmul": matmul,
    "max_pool": max_pool,
    "scaled_dot_product_attention": scaled_dot_product_attention,
}
