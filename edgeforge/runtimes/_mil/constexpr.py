"""Decompression of weights, in the types that the file has: what a decompressed program would store, to the bit.

Unlike other operations these take and give numbers as they are stored (float16, 8-bit integers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from edgeforge.runtimes._mil.shape import integers
from edgeforge.runtimes._mil.types import unpack


def _spread(values: Tensor, shape: Sequence[int]) -> Tensor:
    """One number per block -> one per element; the size of a block is the ratio of the shapes."""
    for axis, size in enumerate(shape):
        if size % values.shape[axis]:
            raise ValueError(f"an axis of {size} is not made of {values.shape[axis]} blocks")
        if values.shape[axis] not in (1, size):
            values = values.repeat_interleave(size // values.shape[axis], dim=axis)
    return values


def blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """scale * (data - offset), each of the two per block."""
    if data.dim() != scale.dim():
        raise ValueError(f"data of {data.dim()} axes has a scale of {scale.dim()}")
    numbers = data.to(scale.dtype)
    if offset is not None:
        numbers = numbers - _spread(offset, data.shape)
    return (_spread(scale, data.shape) * numbers).to(scale.dtype)


def lut_to_dense(
    indices: Tensor, lut: Tensor, vector_axis: Tensor | None = None, shape: Tensor | None = None
) -> Tensor:
    """Palettes (blocks..., entries, vector) looked up by `indices`; `shape` is given by programs before iOS 18."""
    if shape is not None:
        sizes = integers(shape)
        bits = (lut.numel() - 1).bit_length()
        packed = unpack(indices.numpy(), bits, int(torch.Size(sizes).numel()))
        return lut[torch.from_numpy(packed).long()].reshape(sizes)
    entries, width = lut.shape[-2:]
    if lut.dim() != indices.dim() + 2 or (width > 1 and vector_axis is None):
        raise ValueError(f"palettes of shape {tuple(lut.shape)} do not fit indices of shape {tuple(indices.shape)}")
    # The number of each element's palette, counted over the blocks in order.
    blocks = torch.arange(lut.shape[:-2].numel()).reshape(lut.shape[:-2])
    palettes = lut.reshape(-1, entries, width)
    found = palettes[_spread(blocks, indices.shape).expand(indices.shape), indices.long()]
    if width == 1:
        return found[..., 0]
    axis = int(vector_axis) % indices.dim()  # type: ignore[arg-type]  # checked above
    return found.movedim(-1, axis + 1).flatten(axis, axis + 1)


def sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Tensor | None = None) -> Tensor:
    """`mask`: one number per element, or (with `shape`, before iOS 18) one bit."""
    if shape is not None:
        sizes = integers(shape)
        bits = unpack(mask.numpy(), 1, int(torch.Size(sizes).numel()))
        mask = torch.from_numpy(bits).reshape(sizes)
    chosen = mask.bool()
    if int(chosen.sum()) != nonzero_data.numel():
        raise ValueError(f"{nonzero_data.numel()} numbers are stored for {int(chosen.sum())} places")
    dense = torch.zeros(mask.shape, dtype=nonzero_data.dtype)
    dense[chosen] = nonzero_data
    return dense


def lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, vector_axis: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(mask, numbers at the places it marks)."""
    indices = sparse_to_dense(indices_nonzero_data, indices_mask)
    mask = indices_mask
    if lut.shape[-1] > 1 and vector_axis is not None:
        mask = mask.repeat_interleave(lut.shape[-1], dim=int(vector_axis) % mask.dim())
    return mask, lut_to_dense(indices, lut, vector_axis)[mask.bool()]


def sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(mask, numbers at the places it marks)."""
    dense = blockwise_shift_scale(sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask.bool()]


def affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: Tensor) -> Tensor:
    """scale * (data - zero point), each a scalar or one number per slice along `axis`; before iOS 18."""
    shape = [1] * quantized_data.dim()
    shape[int(axis)] = -1
    numbers = quantized_data.float() - (zero_point.reshape(shape) if zero_point.dim() else zero_point).float()
    return (numbers * (scale.reshape(shape) if scale.dim() else scale).float()).to(scale.dtype)


def cast(source_val: Tensor, output_dtype: str) -> Tensor:
    if output_dtype != "fp32":
        raise ValueError(f"constants are cast to fp32 only, not to '{output_dtype}'")
    return source_val.float()


OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "constexpr_affine_dequantize": affine_dequantize,
    "constexpr_blockwise_shift_scale": blockwise_shift_scale,
    "constexpr_cast": cast,
    "constexpr_lut_to_dense": lut_to_dense,
    "constexpr_lut_to_sparse": lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": sparse_blockwise_shift_scale,
    "constexpr_sparse_to_dense": sparse_to_dense,
}
