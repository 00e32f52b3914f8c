"""Every operation against coremltools' own numpy evaluation of constants, or against a formula written out here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools")

from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types

from edgeforge.core.errors import ModelError
from edgeforge.runtimes.coreml_reference import open_model

Arrays = tuple[np.ndarray, ...]
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return (np.abs(normal(*shape)) + 0.1).astype(np.float32)


def ints(low: int, high: int, *shape: int) -> np.ndarray:
    return RNG.integers(low, high, shape).astype(np.int32)


UNARY = ["abs", "atan", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "relu", "relu6", "round", "sigmoid"]
UNARY += ["sign", "sin", "sinh", "softplus", "softsign", "square", "tan", "tanh"]
BINARY = ["add", "sub", "mul", "real_div", "floor_div", "mod", "maximum", "minimum"]
COMPARED = ["equal", "not_equal", "greater", "greater_equal", "less", "less_equal"]
REDUCED = ["l1_norm", "l2_norm", "log_sum", "log_sum_exp", "max", "mean", "min", "prod", "sum", "sum_square"]

Build = Callable[..., Any]
CASES: dict[str, tuple[Build, Arrays]] = {}
for _name in UNARY:
    CASES[_name] = (lambda x, op=_name: getattr(mb, op)(x=x), (normal(3, 4),))
for _name in ("log", "sqrt", "rsqrt", "inverse"):
    CASES[_name] = (lambda x, op=_name: getattr(mb, op)(x=x), (positive(3, 4),))
for _name in ("acos", "asin", "atanh"):
    CASES[_name] = (lambda x, op=_name: getattr(mb, op)(x=x), (np.clip(normal(3, 4), -0.9, 0.9),))
for _name in BINARY:
    CASES[_name] = (lambda x, y, op=_name: getattr(mb, op)(x=x, y=y), (normal(3, 4), normal(1, 4)))
for _name in ("floor_div", "mod", "mul"):
    CASES[f"{_name} of integers"] = (
        lambda x, y, op=_name: getattr(mb, op)(x=x, y=y),
        (ints(-9, 10, 3, 4), ints(1, 5, 1, 4)),
    )
for _name in COMPARED:
    CASES[_name] = (
        lambda x, y, op=_name: mb.cast(x=getattr(mb, op)(x=x, y=y), dtype="fp32"),
        (ints(0, 3, 3, 4), ints(0, 3, 3, 4)),
    )
for _name in ("logical_and", "logical_or", "logical_xor"):
    CASES[_name] = (
        lambda x, y, op=_name: mb.cast(
            x=getattr(mb, op)(x=mb.cast(x=x, dtype="bool"), y=mb.cast(x=y, dtype="bool")), dtype="fp32"
        ),
        (ints(0, 2, 8), ints(0, 2, 8)),
    )
for _name in REDUCED:
    for _keep in (False, True):
        CASES[f"reduce_{_name} keep {_keep}"] = (
            lambda x, op=_name, keep=_keep: getattr(mb, f"reduce_{op}")(x=x, axes=[2, -3], keep_dims=keep),
            (positive(2, 3, 4),),
        )
for _axis in (-1, 1):
    CASES[f"reduce_argmax {_axis}"] = (lambda x, a=_axis: mb.reduce_argmax(x=x, axis=a), (normal(2, 3, 4),))
    CASES[f"reduce_argmin {_axis}"] = (lambda x, a=_axis: mb.reduce_argmin(x=x, axis=a), (normal(2, 3, 4),))
    CASES[f"softmax {_axis}"] = (lambda x, a=_axis: mb.softmax(x=x, axis=a), (normal(2, 3, 4),))
    CASES[f"concat {_axis}"] = (lambda x, y, a=_axis: mb.concat(values=[x, y], axis=a), (normal(2, 3), normal(2, 3)))
    CASES[f"stack {_axis}"] = (lambda x, y, a=_axis: mb.stack(values=[x, y], axis=a), (normal(2, 3), normal(2, 3)))
    CASES[f"gather {_axis}"] = (
        lambda x, i, a=_axis: mb.gather(x=x, indices=i, axis=a, validate_indices=False),
        (normal(3, 4, 5), ints(0, 4, 2, 2)),
    )
    CASES[f"gather_along_axis {_axis}"] = (
        lambda x, i, a=_axis: mb.gather_along_axis(x=x, indices=i, axis=a, validate_indices=False),
        (normal(3, 4, 4), ints(0, 4, 3, 4, 4)),
    )
CASES |= {
    "pow": (lambda x, y: mb.pow(x=x, y=y), (positive(3, 4), normal(4))),
    "clip": (lambda x: mb.clip(x=x, alpha=-0.5, beta=0.7), (normal(3, 4),)),
    "threshold": (lambda x: mb.threshold(x=x, alpha=0.2), (normal(3, 4),)),
    "logical_not": (
        lambda x: mb.cast(x=mb.logical_not(x=mb.cast(x=x, dtype="bool")), dtype="int32"),
        (ints(0, 2, 8),),
    ),
    "elu": (lambda x: mb.elu(x=x, alpha=0.7), (normal(3, 4),)),
    "leaky_relu": (lambda x: mb.leaky_relu(x=x, alpha=0.2), (normal(3, 4),)),
    "clamped_relu": (lambda x: mb.clamped_relu(x=x, alpha=0.2, beta=0.6), (normal(3, 4),)),
    "linear_activation": (lambda x: mb.linear_activation(x=x, alpha=2.0, beta=-1.0), (normal(3, 4),)),
    "scaled_tanh": (lambda x: mb.scaled_tanh(x=x, alpha=2.0, beta=0.5), (normal(3, 4),)),
    "sigmoid_hard": (lambda x: mb.sigmoid_hard(x=x, alpha=0.3, beta=0.5), (normal(3, 4),)),
    "thresholded_relu": (lambda x: mb.thresholded_relu(x=x, alpha=0.3), (normal(3, 4),)),
    "prelu": (lambda x: mb.prelu(x=x, alpha=np.float32([0.1, 0.2, 0.3])), (normal(2, 3, 4, 4),)),
    "softplus_parametric": (
        lambda x: mb.softplus_parametric(x=x, alpha=np.float32([1, 2, 3]), beta=np.float32([1, 2, 0.5])),
        (normal(2, 3, 4),),
    ),
    "gelu": (lambda x: mb.gelu(x=x, mode="EXACT"), (normal(3, 4),)),
    "gelu tanh": (lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"), (normal(3, 4),)),
    "gelu sigmoid": (lambda x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"), (normal(3, 4),)),
    "select": (
        lambda c, a, b: mb.select(cond=mb.cast(x=c, dtype="bool"), a=a, b=b),
        (ints(0, 2, 3, 4), normal(3, 4), normal(3, 4)),
    ),
    "cast to int32": (lambda x: mb.cast(x=x, dtype="int32"), (normal(9) * 5,)),
    "cast to uint8": (lambda x: mb.cast(x=mb.cast(x=x, dtype="uint8"), dtype="int32"), (ints(0, 256, 9),)),
    "cast to uint16": (lambda x: mb.cast(x=mb.cast(x=x, dtype="uint16"), dtype="int32"), (ints(0, 65536, 9),)),
    "reduce_sum all": (lambda x: mb.reduce_sum(x=x, keep_dims=True), (normal(2, 3),)),
    "cumsum": (lambda x: mb.cumsum(x=x, axis=1), (normal(2, 5),)),
    "cumsum reverse": (lambda x: mb.cumsum(x=x, axis=0, reverse=True), (normal(4, 2),)),
    "cumsum of integers": (lambda x: mb.cumsum(x=x, axis=1), (ints(0, 5, 2, 5),)),
    "reshape": (lambda x: mb.reshape(x=x, shape=[4, -1]), (normal(2, 3, 4),)),
    "transpose": (lambda x: mb.transpose(x=x, perm=[2, 0, -2]), (normal(2, 3, 4),)),
    "expand_dims": (lambda x: mb.expand_dims(x=x, axes=[-1, 0, 2]), (normal(2, 3),)),
    "expand_dims from the end": (lambda x: mb.expand_dims(x=x, axes=[-2, -1]), (normal(2, 3),)),
    "squeeze": (lambda x: mb.squeeze(x=x, axes=[1]), (normal(2, 1, 3, 1),)),
    "squeeze all": (lambda x: mb.squeeze(x=x), (normal(2, 1, 3, 1),)),
    "tile": (lambda x: mb.tile(x=x, reps=[2, 3]), (normal(2, 3),)),
    "split": (lambda x: mb.split(x=x, num_splits=2, axis=-1)[1], (normal(3, 6),)),
    "split in sizes": (lambda x: mb.split(x=x, split_sizes=[1, 3, 2], axis=1)[1], (normal(3, 6),)),
    "slice": (lambda x: mb.slice_by_index(x=x, begin=[1, -3], end=[3, 5], stride=[1, 2]), (normal(4, 6),)),
    "slice masked": (
        lambda x: mb.slice_by_index(
            x=x, begin=[9, 1, 2], end=[9, 9, 9], begin_mask=[True, False, False], end_mask=[True, True, False],
            squeeze_mask=[False, False, True],
        ),
        (normal(2, 3, 4),),
    ),
    "slice backwards": (
        lambda x: mb.slice_by_index(x=x, begin=[-1, 4], end=[0, 0], stride=[-1, -2], end_mask=[True, False]),
        (normal(3, 6),),
    ),
    "slice squeezed from the end": (
        lambda x: mb.slice_by_index(x=x, begin=[0, -1], end=[2, 0], squeeze_mask=[False, True]),
        (normal(3, 6),),
    ),
    "slice_by_size": (lambda x: mb.slice_by_size(x=x, begin=[1, 2], size=[2, -1]), (normal(4, 6),)),
    "slice_update": (
        lambda x, u: mb.slice_update(x=x, update=u, begin=[1, 0], end=[3, 5], stride=[1, 2]),
        (normal(4, 6), normal(2, 3)),
    ),
    "slice_update squeezed": (
        lambda x, u: mb.slice_update(x=x, update=u, begin=[-1, 1], end=[0, 4], squeeze_mask=[True, False]),
        (normal(4, 6), normal(3)),
    ),
    "pad": (lambda x: mb.pad(x=x, pad=[1, 2, 0, 3], constant_val=-1.5), (normal(2, 3, 4),)),
    "pad reflect": (lambda x: mb.pad(x=x, pad=[0, 0, 2, 1], mode="reflect"), (normal(2, 3, 4),)),
    "pad replicate": (lambda x: mb.pad(x=x, pad=[1, 0, 2, 1], mode="replicate"), (normal(2, 3, 4),)),
    "band_part": (lambda x: mb.band_part(x=x, lower=1, upper=-1), (normal(2, 4, 5),)),
    "band_part upper": (lambda x: mb.band_part(x=x, lower=-1, upper=0), (normal(4, 4),)),
    "reverse": (lambda x: mb.reverse(x=x, axes=[1]), (normal(2, 3),)),
    "shape": (lambda x: mb.shape(x=x), (normal(2, 3, 5),)),
    "flatten2d": (lambda x: mb.flatten2d(x=x, axis=2), (normal(2, 3, 4),)),
    "topk": (lambda x: mb.topk(x=x, k=2, axis=1)[0], (normal(3, 5),)),
    "topk indices": (lambda x: mb.topk(x=x, k=2, axis=0, ascending=True)[1], (normal(4, 3),)),
    "argsort": (lambda x: mb.argsort(x=x, axis=1, ascending=True), (normal(3, 5),)),
    "layer_norm": (
        lambda x: mb.layer_norm(x=x, axes=[-1], gamma=np.float32([1, 2, 3]), beta=np.float32([0, 1, 2]), epsilon=1e-3),
        (normal(2, 3),),
    ),
    "layer_norm inner": (lambda x: mb.layer_norm(x=x, axes=[1], epsilon=1e-3), (normal(2, 3, 4),)),
    "l2_norm": (lambda x: mb.l2_norm(x=x, epsilon=1e-3), (normal(2, 3, 4, 5),)),
    "matmul": (lambda x, y: mb.matmul(x=x, y=y), (normal(2, 3, 4), normal(4, 5))),
    "matmul transposed": (
        lambda x, y: mb.matmul(x=x, y=y, transpose_x=True, transpose_y=True),
        (normal(2, 4, 3), normal(2, 5, 4)),
    ),
    "linear": (
        lambda x: mb.linear(x=x, weight=np.arange(12, dtype=np.float32).reshape(3, 4), bias=np.float32([1, 2, 3])),
        (normal(2, 4),),
    ),
    "einsum": (lambda x, y: mb.einsum(values=[x, y], equation="chw,whr->chr"), (normal(2, 3, 4), normal(4, 3, 5))),
    "attention": (
        lambda q, k, v: mb.scaled_dot_product_attention(query=q, key=k, value=v),
        (normal(2, 3, 4), normal(2, 5, 4), normal(2, 5, 6)),
    ),
    "attention masked": (
        lambda q, k, v, m: mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=m),
        (normal(2, 3, 4), normal(2, 5, 4), normal(2, 5, 6), normal(3, 5)),
    ),
    "quantize": (
        lambda x: mb.cast(
            x=mb.quantize(input=x, scale=np.float32(0.05), zero_point=np.int8(-7), output_dtype="int8"), dtype="int32"
        ),
        (normal(3, 40) * 4,),
    ),
    "quantize per channel": (
        lambda x: mb.cast(
            x=mb.quantize(
                input=x, scale=np.float32([0.05, 0.5]), zero_point=np.uint8([3, 200]), axis=1, output_dtype="uint8"
            ),
            dtype="int32",
        ),
        (normal(3, 2, 20) * 4,),
    ),
    "ties go to even": (
        lambda x: mb.cast(x=mb.quantize(input=x, scale=np.float32(1.0), output_dtype="int8"), dtype="int32"),
        (np.float32([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 300, -300]),),
    ),
}  # fmt: skip


def windows(x: np.ndarray, kernel: list[int], strides: list[int], dilations: list[int]) -> np.ndarray:
    """(N, C, H, W) -> (N, C, out H, out W, kernel H, kernel W), by the definition."""
    reach = [(size - 1) * gap + 1 for size, gap in zip(kernel, dilations, strict=True)]
    sizes = [(x.shape[2 + axis] - reach[axis]) // strides[axis] + 1 for axis in range(2)]
    found = np.zeros((*x.shape[:2], *sizes, *kernel), x.dtype)
    for row, column, i, j in np.ndindex(*sizes, *kernel):
        found[:, :, row, column, i, j] = x[
            :, :, row * strides[0] + i * dilations[0], column * strides[1] + j * dilations[1]
        ]
    return found


def padded(x: np.ndarray, amounts: list[int], value: float = 0.0) -> np.ndarray:
    """`amounts`: before and after the height, before and after the width."""
    return np.pad(x, ((0, 0), (0, 0), tuple(amounts[:2]), tuple(amounts[2:])), constant_values=value)


def correlate(
    x: np.ndarray,
    weight: np.ndarray,
    *,
    pad: list[int],
    strides: list[int],
    dilations: list[int] | None = None,
    groups: int = 1,
) -> np.ndarray:
    """A convolution, from its definition."""
    seen = windows(padded(x, pad), list(weight.shape[2:]), strides, dilations or [1, 1])
    per = weight.shape[0] // groups
    parts = [
        np.einsum("nchwij,ocij->nohw", part, weight[group * per : (group + 1) * per])
        for group, part in enumerate(np.split(seen, groups, axis=1))
    ]
    return np.concatenate(parts, axis=1)


WEIGHT, BIAS = normal(4, 3, 3, 2), normal(4)
DEPTHWISE = normal(6, 1, 3, 3)
MEAN, VARIANCE, GAMMA, BETA = normal(3), positive(3), normal(3), normal(3)
TRANSPOSED = normal(3, 2, 2, 2)


def transposed_by_hand(x: np.ndarray) -> np.ndarray:
    """Stride 2 and a kernel of 2 do not overlap: every input number paints its own square; one row is then cut."""
    painted = np.einsum("nchw,coij->nohiwj", x, TRANSPOSED).reshape(1, 2, 2 * x.shape[2], 2 * x.shape[3])
    return painted[:, :, 1:, :]


def scattered_by_hand(data: np.ndarray, places: np.ndarray, updates: np.ndarray) -> np.ndarray:
    found = data.copy()
    for column, place in enumerate(places):
        found[:, place] += updates[:, column]
    return found


def normalised_by_hand(x: np.ndarray) -> np.ndarray:
    """Per sample and channel."""
    mean, variance = x.mean((2, 3), keepdims=True), x.var((2, 3), keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-3)


def counted(x: np.ndarray) -> np.ndarray:
    """Doubled until the first number is not below 100."""
    while x[0] < 100:
        x = x * 2
    return x


BY_HAND: dict[str, tuple[Build, Arrays, Callable[..., np.ndarray]]] = {
    "silu": (lambda x: mb.silu(x=x), (normal(3, 4),), lambda x: x / (1 + np.exp(-x))),
    "cumsum exclusive": (
        lambda x: mb.cumsum(x=x, axis=1, exclusive=True),
        (normal(2, 5),),
        lambda x: np.cumsum(x, axis=1) - x,
    ),
    "one_hot": (
        lambda i: mb.one_hot(indices=i, one_hot_vector_size=4, axis=0, on_value=2.0, off_value=-1.0),
        (ints(0, 4, 3),),
        lambda i: np.where(np.arange(4)[:, None] == i, 2.0, -1.0),
    ),
    "gather_nd": (
        lambda x, i: mb.gather_nd(x=x, indices=i, validate_indices=False),
        (normal(3, 4, 2), ints(-3, 3, 5, 2)),
        lambda x, i: x[i[:, 0], i[:, 1]],
    ),
    "gather one": (
        lambda x, i: mb.gather(x=x, indices=mb.squeeze(x=i), axis=0, validate_indices=False),
        (normal(5), np.int32([-2])),
        lambda x, i: x[-2],
    ),
    "gather in pairs": (
        lambda x, i: mb.gather(x=x, indices=i, axis=1, batch_dims=1, validate_indices=False),
        (normal(3, 4, 2), ints(0, 4, 3, 5)),
        lambda x, i: np.stack([row[places] for row, places in zip(x, i, strict=True)]),
    ),
    "real_div of integers": (
        lambda x, y: mb.real_div(x=x, y=y), (np.int32([6, -8]), np.int32([2])), lambda x, y: x // y
    ),
    "concat scalars": (
        lambda x: mb.concat(values=[mb.squeeze(x=x), np.float32(7.0)], axis=0),
        (normal(1),),
        lambda x: np.float32([x[0], 7]),
    ),
    "concat interleaved": (
        lambda x, y: mb.concat(values=[x, y], axis=1, interleave=True),
        (normal(2, 3), normal(2, 3)),
        lambda x, y: np.stack([x, y], axis=2).reshape(2, 6),
    ),
    "fill": (
        lambda s: mb.fill(shape=s, value=2.5), (np.int32([2, 3]),), lambda s: np.full(tuple(s), 2.5, np.float32)
    ),
    "range_1d": (
        lambda n: mb.range_1d(start=np.int32(2), end=mb.squeeze(x=n), step=np.int32(3)),
        (np.int32([12]),),
        lambda n: np.arange(2, n[0], 3),
    ),
    "non_zero": (lambda x: mb.non_zero(x=x), (np.float32([[0, 1, 2], [3, 0, 0]]),), lambda x: np.argwhere(x)),
    "scatter": (
        lambda d, i, u: mb.scatter(data=d, indices=i, updates=u, axis=1, mode="add", validate_indices=False),
        (normal(2, 4), np.int32([3, 0, 3]), normal(2, 3)),
        scattered_by_hand,
    ),
    "scatter_along_axis": (
        lambda d, i, u: mb.scatter_along_axis(
            data=d, indices=i, updates=u, axis=1, mode="update", validate_indices=False
        ),
        (normal(2, 4), np.int32([[3, 0], [1, 2]]), normal(2, 2)),
        lambda d, i, u: np.put_along_axis(d2 := d.copy(), i, u, 1) or d2,
    ),
    "scatter_nd": (
        lambda d, i, u: mb.scatter_nd(data=d, indices=i, updates=u, mode="max", validate_indices=False),
        (normal(3, 4), np.int32([[2, 1], [0, 3]]), normal(2)),
        lambda d, i, u: np.maximum.at(d2 := d.copy(), (i[:, 0], i[:, 1]), u) or d2,
    ),
    "pixel_shuffle": (
        lambda x: mb.pixel_shuffle(x=x, upscale_factor=2),
        (normal(1, 8, 2, 3),),
        lambda x: x.reshape(1, 2, 2, 2, 2, 3).transpose(0, 1, 4, 2, 5, 3).reshape(1, 2, 4, 6),
    ),
    "space_to_depth": (
        lambda x: mb.space_to_depth(x=x, block_size=2),
        (normal(1, 2, 4, 6),),
        lambda x: np.concatenate([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=1),
    ),
    "depth_to_space": (
        lambda x: mb.space_to_depth(x=mb.depth_to_space(x=x, block_size=2), block_size=2),
        (normal(1, 8, 2, 3),),
        lambda x: x,
    ),
    "batch_norm": (
        lambda x: mb.batch_norm(x=x, mean=MEAN, variance=VARIANCE, gamma=GAMMA, beta=BETA, epsilon=1e-3),
        (normal(2, 3, 4, 5),),
        lambda x: ((x - MEAN[:, None, None]) / np.sqrt(VARIANCE + 1e-3)[:, None, None]) * GAMMA[:, None, None]
        + BETA[:, None, None],
    ),
    "instance_norm": (lambda x: mb.instance_norm(x=x, epsilon=1e-3), (normal(2, 3, 4, 5),), normalised_by_hand),
    "conv": (
        lambda x: mb.conv(x=x, weight=WEIGHT, bias=BIAS, strides=[2, 1], dilations=[1, 2]),
        (normal(2, 3, 7, 6),),
        lambda x: correlate(x, WEIGHT, pad=[0, 0, 0, 0], strides=[2, 1], dilations=[1, 2]) + BIAS[:, None, None],
    ),
    "conv padded unevenly": (
        lambda x: mb.conv(x=x, weight=WEIGHT, pad_type="custom", pad=[1, 0, 2, 3]),
        (normal(2, 3, 5, 6),),
        lambda x: correlate(x, WEIGHT, pad=[1, 0, 2, 3], strides=[1, 1]),
    ),
    # One row is added for a height of 6 (below) and two for one of 5 (both sides); one column for a width of 5.
    "conv same": (
        lambda x: mb.conv(x=x, weight=WEIGHT, pad_type="same", strides=[2, 2]),
        (normal(1, 3, 6, 5),),
        lambda x: correlate(x, WEIGHT, pad=[0, 1, 0, 1], strides=[2, 2]),
    ),
    "conv same_lower": (
        lambda x: mb.conv(x=x, weight=WEIGHT, pad_type="same_lower", strides=[2, 2]),
        (normal(1, 3, 6, 5),),
        lambda x: correlate(x, WEIGHT, pad=[1, 0, 1, 0], strides=[2, 2]),
    ),
    "conv depthwise": (
        lambda x: mb.conv(x=x, weight=DEPTHWISE, groups=6, pad_type="custom", pad=[1, 1, 1, 1]),
        (normal(1, 6, 5, 5),),
        lambda x: correlate(x, DEPTHWISE, pad=[1, 1, 1, 1], strides=[1, 1], groups=6),
    ),
    "conv_transpose": (
        lambda x: mb.conv_transpose(x=x, weight=TRANSPOSED, strides=[2, 2], pad_type="custom", pad=[1, 0, 0, 0]),
        (normal(1, 3, 3, 4),),
        transposed_by_hand,
    ),
    "max_pool": (
        lambda x: mb.max_pool(x=x, kernel_sizes=[3, 2], strides=[2, 2], pad_type="custom", pad=[1, 1, 0, 1]),
        (-positive(1, 2, 6, 5),),
        lambda x: windows(padded(x, [1, 1, 0, 1], -np.inf), [3, 2], [2, 2], [1, 1]).max((-1, -2)),
    ),
    "max_pool ceil": (
        lambda x: mb.max_pool(x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid", ceil_mode=True),
        (-positive(1, 2, 5, 4),),
        lambda x: windows(padded(x, [0, 1, 0, 0], -np.inf), [2, 2], [2, 2], [1, 1]).max((-1, -2)),
    ),
    "avg_pool": (
        lambda x: mb.avg_pool(x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1]),
        (normal(1, 2, 6, 5),),
        lambda x: windows(padded(x, [1, 1, 1, 1]), [3, 3], [2, 2], [1, 1]).mean((-1, -2)),
    ),
    "avg_pool of what is there": (
        lambda x: mb.avg_pool(
            x=x, kernel_sizes=[3, 3], pad_type="custom", pad=[1, 0, 0, 1], exclude_padding_from_average=True
        ),
        (normal(1, 2, 6, 5),),
        lambda x: np.nanmean(windows(padded(x, [1, 0, 0, 1], np.nan), [3, 3], [1, 1], [1, 1]), axis=(-1, -2)),
    ),
    "dequantize": (
        lambda x: mb.dequantize(
            input=mb.cast(x=x, dtype="uint8"), scale=np.float32([0.5, 0.25]), zero_point=np.uint8([100, 3]), axis=-1
        ),
        (ints(0, 256, 3, 2),),
        lambda x: (x - [100, 3]) * [0.5, 0.25],
    ),
    "cond": (
        lambda x: mb.cond(
            pred=mb.greater(x=mb.reduce_sum(x=x), y=np.float32(0)),
            _true_fn=lambda: mb.mul(x=x, y=np.float32(2)),
            _false_fn=lambda: mb.sub(x=x, y=np.float32(1)),
        ),
        (-positive(3),),
        lambda x: x - 1,
    ),
    "while_loop": (
        lambda x: mb.while_loop(
            _cond=lambda y: mb.less(
                x=mb.squeeze(x=mb.slice_by_index(x=y, begin=[0], end=[1])), y=np.float32(100)
            ),
            _body=lambda y: mb.mul(x=y, y=np.float32(2)),
            loop_vars=(x,),
        ),
        (np.float32([3, 5]),),
        counted,
    ),
}  # fmt: skip
"""Where coremltools does not compute constants, or wrongly: case -> what it should be."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, save_program_to: Callable[..., Path]) -> dict[str, Any]:
    """Case -> (what the evaluator answers, what coremltools computes at conversion). One package for all."""
    expected: dict[str, Any] = {}
    cases = CASES | {case: (build, arrays) for case, (build, arrays, _) in BY_HAND.items()}
    names = {case: f"c{index}" for index, case in enumerate(cases)}
    given = {f"{names[case]}_{i}": array for case, (_, arrays) in cases.items() for i, array in enumerate(arrays)}
    kinds = {np.dtype(np.float32): types.fp32, np.dtype(np.int32): types.int32}
    specs = [mb.TensorSpec(shape=array.shape, dtype=kinds[array.dtype]) for array in given.values()]

    def program(*values: Any) -> Any:
        at, outputs = 0, []
        for case, (build, arrays) in cases.items():
            expected[case] = BY_HAND[case][2](*arrays) if case in BY_HAND else build(*arrays).val
            result = build(*values[at : at + len(arrays)])
            outputs.append(mb.identity(x=result, name=f"{names[case]}_out"))
            at += len(arrays)
        return tuple(outputs)

    # mb.program reads the names of the arguments off the function.
    function = eval(f"lambda {', '.join(given)}: program({', '.join(given)})", {"program": program})
    path = save_program_to(function, specs, tmp_path_factory.mktemp("operations") / "m.mlpackage")
    found = open_model(path).predict(given)
    return {case: (found[f"{names[case]}_out"], expected[case]) for case in cases}


@pytest.mark.parametrize("case", [*CASES, *BY_HAND])
def test_it_computes_what_coremltools_does(case: str, answers: dict[str, Any]) -> None:
    found, expected = answers[case]
    assert expected is not None, "coremltools does not evaluate this"
    assert found.shape == np.shape(expected)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("build", "array", "reason"),
    [
        (lambda x: mb.real_div(x=x, y=np.int32(2)), np.int32([6, 7]), "'real_div' does not run: it divides integers"),
        (lambda x: mb.gather(x=np.float32([1, 2]), indices=x, axis=0), np.int32([0, 2]), "outside an axis of 2"),
        (lambda x: mb.gather(x=np.float32([1, 2]), indices=x, axis=0), np.int32([0, -3]), "outside an axis of 2"),
    ],
)
def test_what_the_format_leaves_open_is_an_error(
    build: Build, array: np.ndarray, reason: str, write_package: Callable[..., Path]
) -> None:
    path = write_package(build, [mb.TensorSpec(shape=array.shape, dtype=types.int32)])
    with pytest.raises(ModelError, match=reason):
        open_model(path).predict({"x": array})
