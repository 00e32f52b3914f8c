"""Operations that move, pick and make numbers without computing with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def integers(values: Tensor) -> list[int]:
    """A tensor of any rank as Python integers."""
    return [int(value) for value in values.reshape(-1).tolist()]


def reshape(x: Tensor, shape: Tensor) -> Tensor:
    """A size of 0 keeps that of `x`, one of -1 is what remains."""
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(integers(shape))])


def expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    found = integers(axes)
    rank = x.dim() + len(found)
    for axis in sorted(axis % rank for axis in found):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = range(x.dim()) if axes is None else integers(axes)
    if axes is not None and any(x.shape[axis] != 1 for axis in chosen):
        raise ValueError(f"an axis of {tuple(chosen)} is not 1 in {tuple(x.shape)}")
    return x.squeeze(tuple(chosen))


def tile(x: Tensor, reps: Tensor) -> Tensor:
    return x.repeat(integers(reps))


def concat(values: Sequence[Tensor], axis: Tensor, interleave: Tensor | bool = False) -> Tensor:
    """`interleave`: first slices of every value, then the second ones, and so on. A scalar counts as one slice."""
    place = int(axis)
    if not interleave:
        return torch.cat([value if value.dim() else value[None] for value in values], dim=place)
    place %= values[0].dim()
    return torch.stack([*values], dim=place + 1).flatten(place, place + 1)


def split(
    x: Tensor, axis: Tensor, num_splits: Tensor | None = None, split_sizes: Tensor | None = None
) -> tuple[Tensor, ...]:
    if split_sizes is not None:
        return torch.split(x, integers(split_sizes), dim=int(axis))
    if num_splits is None or x.shape[int(axis)] % int(num_splits):
        raise ValueError(f"{tuple(x.shape)} cannot be split evenly along axis {int(axis)}")
    return torch.tensor_split(x, int(num_splits), dim=int(axis))


def _ranges(x: Tensor, begin: Tensor, end: Tensor, *options: Tensor | None) -> list[range | int]:
    """One range of indices per axis, as Python's slices make them; an integer where the axis is dropped.

    `options`: stride, begin_mask, end_mask, squeeze_mask.
    """
    rank = x.dim()
    starts, ends = integers(begin), integers(end)
    if len(starts) != rank or len(ends) != rank:
        raise ValueError(f"there are {len(starts)} begins and {len(ends)} ends for {rank} axes")
    stride, from_first, to_last, dropped = (
        [default] * rank if option is None else integers(option)
        for option, default in zip(options, (1, 0, 0, 0), strict=True)
    )
    found: list[range | int] = []
    for axis, size in enumerate(x.shape):
        first = None if from_first[axis] else starts[axis]
        last = None if to_last[axis] else ends[axis]
        if dropped[axis]:
            found.append(range(size)[first or 0])
        else:
            found.append(range(size)[first : last : stride[axis]])
    return found


def slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    ranges = _ranges(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    for axis in reversed(range(x.dim())):
        chosen = ranges[axis]
        if isinstance(chosen, int):
            x = x.select(axis, chosen)
        elif chosen.step > 0:
            x = x[(slice(None),) * axis + (slice(chosen.start, chosen.stop, chosen.step),)]
        else:  # torch has no slices that run backwards
            x = x.index_select(axis, torch.tensor(chosen, dtype=torch.int64))
    return x


def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    ranges = _ranges(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    lists = [torch.tensor([chosen] if isinstance(chosen, int) else chosen, dtype=torch.int64) for chosen in ranges]
    kept = [len(chosen) for chosen in ranges if not isinstance(chosen, int)]
    if list(update.shape) != kept:
        raise ValueError(f"a slice of shape {tuple(kept)} is to be replaced by {tuple(update.shape)}")
    grid = torch.meshgrid(*lists, indexing="ij")
    return x.index_put(tuple(grid), update.reshape(grid[0].shape))


def slice_by_size(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    for axis, (start, count) in enumerate(zip(integers(begin), integers(size), strict=True)):
        start %= x.shape[axis]
        x = x.narrow(axis, start, x.shape[axis] - start if count == -1 else count)
    return x


def pad(x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Tensor | float = 0.0) -> Tensor:
    """`pad`: before and after, for the last axes in their order."""
    amounts = integers(pad)
    reverse = [amount for axis in reversed(range(len(amounts) // 2)) for amount in amounts[2 * axis : 2 * axis + 2]]
    if mode == "constant":
        return functional.pad(x, reverse, value=float(constant_val))
    while len(reverse) > 2 and not any(reverse[-2:]):  # torch reflects the last axes only
        reverse = reverse[:-2]
    flat = x.reshape(1, -1, *x.shape[x.dim() - len(reverse) // 2 :])
    padded = functional.pad(flat, reverse, mode={"reflect": "reflect", "replicate": "replicate"}[mode])
    return padded.reshape(*x.shape[: x.dim() - len(reverse) // 2], *padded.shape[2:])


def fill(shape: Tensor, value: Tensor | float = 0.0) -> Tensor:
    filling = torch.as_tensor(value)
    return filling.reshape([1] * shape.numel()).expand(integers(shape)).contiguous()


def fill_like(ref_tensor: Tensor, value: Tensor | float = 0.0) -> Tensor:
    return torch.as_tensor(value).expand(ref_tensor.shape).contiguous()


def range_1d(end: Tensor, start: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


def band_part(x: Tensor, lower: Tensor | int = -1, upper: Tensor | int = -1) -> Tensor:
    """Zero outside the band around the diagonal of the last two axes; negative: no limit on that side."""
    below = torch.arange(x.shape[-2])[:, None] - torch.arange(x.shape[-1])[None]
    inside = torch.ones_like(below, dtype=torch.bool)
    if int(lower) >= 0:
        inside &= below <= int(lower)
    if int(upper) >= 0:
        inside &= -below <= int(upper)
    return torch.where(inside, x, torch.zeros_like(x))


def one_hot(
    indices: Tensor,
    one_hot_vector_size: Tensor,
    axis: Tensor | int = -1,
    on_value: Tensor | int = 1,
    off_value: Tensor | int = 0,
) -> Tensor:
    on, off = torch.as_tensor(on_value), torch.as_tensor(off_value)
    matches = indices.long()[..., None] == torch.arange(int(one_hot_vector_size))
    made = torch.where(matches, on, off)
    place = int(axis) % made.dim()
    return made.movedim(-1, place)


def reverse(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.flip(list(range(x.dim())) if axes is None else integers(axes))


def shape(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


def pixel_shuffle(x: Tensor, upscale_factor: Tensor) -> Tensor:
    return functional.pixel_shuffle(x, int(upscale_factor))


def pixel_unshuffle(x: Tensor, downscale_factor: Tensor) -> Tensor:
    return functional.pixel_unshuffle(x, int(downscale_factor))


def space_to_depth(x: Tensor, block_size: Tensor) -> Tensor:
    size = int(block_size)
    count, channels, height, width = x.shape
    blocks = x.reshape(count, channels, height // size, size, width // size, size).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(count, channels * size * size, height // size, width // size)


def depth_to_space(x: Tensor, block_size: Tensor) -> Tensor:
    size = int(block_size)
    count, channels, height, width = x.shape
    blocks = x.reshape(count, size, size, channels // size**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(count, channels // size**2, height * size, width * size)


OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "band_part": band_part,
    "concat": concat,
    "depth_to_space": depth_to_space,
    "expand_dims": expand_dims,
    "fill": fill,
    "fill_like": fill_like,
    "flatten2d": lambda x, axis=1: x.reshape(x.shape[: int(axis)].numel(), -1),
    "non_zero": lambda x: x.nonzero().to(torch.int32),
    "one_hot": one_hot,
    "pad": pad,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "range_1d": range_1d,
    "reshape": reshape,
    "reverse": reverse,
    "shape": shape,
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "slice_update": slice_update,
    "space_to_depth": space_to_depth,
    "split": split,
    "squeeze": squeeze,
    "stack": lambda values, axis: torch.stack([*values], dim=int(axis)),
    "tile": tile,
    "transpose": lambda x, perm: x.permute(integers(perm)),
}
