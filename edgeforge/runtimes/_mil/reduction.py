"""Operations that sum along axes: reductions, normalizations, softmax."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeforge.runtimes._mil.shape import integers


def _axes(x: Tensor, axes: Tensor | None) -> tuple[int, ...]:
    """Not negative, in order; every axis where none is given."""
    return tuple(range(x.dim())) if axes is None else tuple(sorted(axis % x.dim() for axis in integers(axes)))


def _reduction(compute: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Callable[..., Tensor]:
    """An operation with `axes` and `keep_dims`. It keeps integers of their type, which torch's sums widen."""

    def reduce(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | bool = False) -> Tensor:
        return compute(x, _axes(x, axes), bool(keep_dims)).to(x.dtype)

    return reduce


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in reversed(axes):
        x = x.prod(dim=axis, keepdim=keep)
    return x


def _argument(largest: bool) -> Callable[..., Tensor]:
    def search(
        x: Tensor, axis: Tensor | int = -1, keep_dims: Tensor | bool = False, output_dtype: str = "int32"
    ) -> Tensor:
        found = x.argmax if largest else x.argmin
        return found(dim=int(axis), keepdim=bool(keep_dims)).to(torch.int32)

    return search


def cumsum(
    x: Tensor, axis: Tensor | int = 0, exclusive: Tensor | bool = False, reverse: Tensor | bool = False
) -> Tensor:
    place = int(axis)
    values = x.flip(place) if bool(reverse) else x
    total = values.cumsum(place).to(x.dtype)
    if bool(exclusive):
        total = total - values
    return total.flip(place) if bool(reverse) else total


def softmax(x: Tensor, axis: Tensor | int = -1) -> Tensor:
    return functional.softmax(x, dim=int(axis))


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    return functional.batch_norm(x, mean, variance, gamma, beta, training=False, eps=float(epsilon))


def instance_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: Tensor | float = 1e-5
) -> Tensor:
    return functional.instance_norm(x, weight=gamma, bias=beta, eps=float(epsilon))


def layer_norm(
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    chosen = _axes(x, axes)
    if chosen == tuple(range(x.dim() - len(chosen), x.dim())):
        shape = [x.shape[axis] for axis in chosen]
        return functional.layer_norm(x, shape, gamma, beta, eps=float(epsilon))
    centred = x - x.mean(chosen, keepdim=True)
    result = centred * torch.rsqrt(centred.square().mean(chosen, keepdim=True) + float(epsilon))
    shape = [x.shape[axis] if axis in chosen else 1 for axis in range(x.dim())]
    if gamma is not None:
        result = result * gamma.reshape(shape)
    return result if beta is None else result + beta.reshape(shape)


def l2_norm(x: Tensor, epsilon: Tensor | float = 1e-6) -> Tensor:
    """Over the last three axes."""
    return x * torch.rsqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon)


OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "batch_norm": batch_norm,
    "cumsum": cumsum,
    "instance_norm": instance_norm,
    "l2_norm": l2_norm,
    "layer_norm": layer_norm,
    "reduce_argmax": _argument(largest=True),
    "reduce_argmin": _argument(largest=False),
    "reduce_l1_norm": _reduction(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "reduce_l2_norm": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "reduce_log_sum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    "reduce_log_sum_exp": _reduction(lambda x, axes, keep: x.logsumexp(axes, keepdim=keep)),
    "reduce_max": _reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "reduce_mean": _reduction(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "reduce_min": _reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "reduce_prod": _reduction(_product),
    "reduce_sum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "reduce_sum_square": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    "softmax": softmax,
}
