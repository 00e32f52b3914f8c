"""Activations in 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from edgeforge.runtimes._mil.types import BY_NAME


def _along(values: Tensor, x: Tensor, axis: Tensor | None) -> Tensor:
    """A scalar, or one number per slice of `x` along `axis`."""
    if values.dim() == 0:
        return values
    if axis is None:
        raise ValueError("axis is missing")
    shape = [1] * x.dim()
    shape[int(axis)] = -1
    return values.reshape(shape)


def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: Tensor | None = None
) -> Tensor:
    """clip(round(input / scale) + zero point), ties to even."""
    kind = BY_NAME[output_dtype].held
    steps = torch.round(input / _along(scale, input, axis))
    if zero_point is not None:
        steps = steps + _along(zero_point, input, axis)
    limits = torch.iinfo(kind)
    if bool(steps.isnan().any()):
        raise ValueError("NaN cannot be quantized")
    return steps.clamp(limits.min, limits.max).to(kind)


def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: Tensor | None = None) -> Tensor:
    """scale * (input - zero point)."""
    numbers = input.to(scale.dtype)
    if zero_point is not None:
        numbers = numbers - _along(zero_point, input, axis)
    return _along(scale, input, axis) * numbers


OPERATIONS: Mapping[str, Callable[..., Any]] = {"dequantize": dequantize, "quantize": quantize}
