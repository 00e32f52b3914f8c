"""Operations that look numbers up, write them or order them by index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def _places(indices: Tensor, size: int) -> Tensor:
    """Negative indices count from the end. Raises IndexError outside, where Core ML's answer is not defined."""
    found = indices.long()
    if found.numel() and not (-size <= int(found.min()) and int(found.max()) < size):
        raise IndexError(f"an index is outside an axis of {size}")
    return torch.where(found < 0, found + size, found)


def gather(
    x: Tensor,
    indices: Tensor,
    axis: Tensor | int = 0,
    batch_dims: Tensor | int = 0,
    validate_indices: Tensor | bool = False,
) -> Tensor:
    """Every index picks a slice of `x` along `axis`; the first `batch_dims` axes are paired, not crossed."""
    place, paired = int(axis) % x.dim(), int(batch_dims)
    chosen = _places(indices, x.shape[place])
    if not paired:
        picked = x.index_select(place, chosen.reshape(-1))
        return picked.reshape((*x.shape[:place], *chosen.shape, *x.shape[place + 1 :]))
    rows = x.reshape(-1, *x.shape[paired:])
    lists = chosen.reshape(-1, *chosen.shape[paired:])
    picked = torch.stack([gather(row, one, place - paired) for row, one in zip(rows, lists, strict=True)])
    return picked.reshape(*x.shape[:paired], *picked.shape[1:])


def gather_along_axis(
    x: Tensor, indices: Tensor, axis: Tensor | int = 0, validate_indices: Tensor | bool = False
) -> Tensor:
    place = int(axis) % x.dim()
    return x.gather(place, _places(indices, x.shape[place]))


def gather_nd(
    x: Tensor, indices: Tensor, batch_dims: Tensor | int = 0, validate_indices: Tensor | bool = False
) -> Tensor:
    paired = int(batch_dims)
    if paired:
        rows = x.reshape(-1, *x.shape[paired:])
        lists = indices.reshape(-1, *indices.shape[paired:])
        picked = torch.stack([gather_nd(row, one) for row, one in zip(rows, lists, strict=True)])
        return picked.reshape(*x.shape[:paired], *picked.shape[1:])
    return x[tuple(_places(one, x.shape[axis]) for axis, one in enumerate(indices.unbind(-1)))]


_COMBINED: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "div": torch.div,
    "max": torch.maximum,
    "min": torch.minimum,
    "mul": torch.mul,
    "sub": torch.sub,
    "update": lambda _, new: new,
}
"""What `scatter` modes other than ``add`` do, number by number."""


def _put(data: Tensor, places: tuple[Tensor, ...], updates: Tensor, mode: str) -> Tensor:
    if mode == "add":
        return data.index_put(places, updates.expand_as(data[places]), accumulate=True)
    return data.index_put(places, _COMBINED[mode](data[places], updates))


def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: Tensor | int = 0,
    mode: str = "add",
    validate_indices: Tensor | bool = False,
) -> Tensor:
    place = int(axis) % data.dim()
    moved = data.movedim(place, 0)
    count = indices.dim()
    new = updates.movedim(tuple(range(place, place + count)), tuple(range(count))) if count else updates
    return _put(moved, (_places(indices, moved.shape[0]),), new, mode).movedim(0, place)


def scatter_nd(
    data: Tensor, indices: Tensor, updates: Tensor, mode: str = "add", validate_indices: Tensor | bool = False
) -> Tensor:
    places = tuple(_places(one, data.shape[axis]) for axis, one in enumerate(indices.unbind(-1)))
    return _put(data, places, updates, mode)


def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    axis: Tensor | int = 0,
    mode: str = "add",
    validate_indices: Tensor | bool = False,
) -> Tensor:
    place = int(axis) % data.dim()
    chosen = _places(indices, data.shape[place])
    if mode == "add":
        return data.scatter_add(place, chosen, updates)
    return data.scatter(place, chosen, _COMBINED[mode](data.gather(place, chosen), updates))


def topk(
    x: Tensor,
    k: Tensor | int = 1,
    axis: Tensor | int = -1,
    ascending: Tensor | bool = False,
    sort: Tensor | bool = True,
    return_indices: Tensor | bool = True,
    output_indices_dtype: str = "int32",
) -> Tensor | tuple[Tensor, Tensor]:
    count = x.shape[int(axis)] if int(k) == -1 else int(k)
    order = torch.sort(x, dim=int(axis), descending=not bool(ascending), stable=True)
    values, places = (one.narrow(int(axis), 0, count) for one in order)
    return (values, places.to(torch.int32)) if bool(return_indices) else values


def argsort(x: Tensor, axis: Tensor | int = -1, ascending: Tensor | bool = False) -> Tensor:
    return torch.sort(x, dim=int(axis), descending=not bool(ascending), stable=True).indices.to(torch.int32)


OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "argsort": argsort,
    "gather": gather,
    "gather_along_axis": gather_along_axis,
    "gather_nd": gather_nd,
    "scatter": scatter,
    "scatter_along_axis": scatter_along_axis,
    "scatter_nd": scatter_nd,
    "topk": topk,
}
