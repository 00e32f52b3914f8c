"""The integers of a file that a quantizer rewrote, one by one, computed again from its float parent.

What a file computes shows most wrong integers, but not those that no sample reaches: rows of rare tokens, channels that
are dead behind a rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgeforge import onnx_graph
from edgeforge.verification._grids import Grid, Grids, Table
from edgeforge.verification._onnx_constants import looked_up_tables

if TYPE_CHECKING:
    import onnx

LEAST_SHARE = 0.45
"""Of a grid's end that a channel's largest weight reaches: half of it where sums might overflow, else all."""


def wrong_integers(file: onnx.ModelProto, parent: onnx.ModelProto, grids: Grids) -> Iterator[str]:
    """What is not as it follows from the parent's weights and the recorded numbers, in words."""
    floats, constants = onnx_graph.initializers(parent), onnx_graph.initializers(file)
    for name, grid in grids.weights.items():
        if name not in floats:
            yield f"a weight is recorded as {name}, which the float file does not have"
            continue
        if problem := _misfit(floats[name], grid):
            yield f"the recorded numbers of {_layer(parent, name)} {problem}"
        wanted = _integers(floats[name], grid)
        if not any(_same(wanted, array) for array in constants.values()):
            yield f"the integers of {_layer(parent, name)} are not in the file"
        if grid.scale.size > 1 and not any(_equal(grid.scale, array) for array in constants.values()):
            yield f"the scales of {_layer(parent, name)} are not in the file"
    yield from _wrong_biases(parent, grids, floats, constants)
    yield from _wrong_tables(file, grids, floats)


def _layer(parent: onnx.ModelProto, constant: str) -> str:
    return next((node.name or node.op_type for node in parent.graph.node if constant in node.input), constant)


def _integers(values: np.ndarray, grid: Grid) -> np.ndarray:
    shape = _along(grid.axis, values.ndim)
    limits = np.iinfo(grid.type)
    steps = np.rint(values.astype(np.float32) / grid.scale.reshape(shape)) + grid.zero_point.reshape(shape)
    integers: np.ndarray = steps.clip(limits.min, limits.max).astype(grid.type)
    return integers


def _along(axis: int | None, rank: int) -> list[int]:
    return [] if axis is None else [-1 if other == axis % rank else 1 for other in range(rank)]


def _misfit(values: np.ndarray, grid: Grid) -> str | None:
    """Whether a grid is that of other weights: it cuts some off, or spends its steps on nothing."""
    scale = grid.scale.reshape(_along(grid.axis, values.ndim))
    largest = np.abs(values).max(axis=tuple(axis for axis in range(values.ndim) if axis != grid.axis), keepdims=True)
    end = np.iinfo(grid.type).max
    if (largest > (end + 1.5) * scale).any():
        return "cut its largest weights off"
    # Channels of zeros have a scale all the same, and small ones one that their bias asks for.
    coarse = (largest < LEAST_SHARE * end * scale) & (largest > np.finfo(np.float16).tiny)
    if coarse.mean() > 0.5:
        return "are coarser than its weights need"
    return None


def _same(wanted: np.ndarray, array: np.ndarray) -> bool:
    """The same integers: as they are, transposed, or (a stem that reads squares of pixels) in another order."""
    if array.dtype != wanted.dtype or array.size < wanted.size:
        return False
    if array.size == wanted.size:
        flat = array.reshape(-1)
        if np.array_equal(flat, wanted.reshape(-1)):
            return True
        if wanted.ndim == 2:
            return array.shape == wanted.T.shape and np.array_equal(array, wanted.T)
    if wanted.ndim != 4 or array.ndim != 4 or len(array) != len(wanted):
        return False
    rows = [np.sort(one.reshape(len(one), -1), axis=1) for one in (array, wanted)]
    return all(np.array_equal(one[one != 0], other[other != 0]) for one, other in zip(*rows, strict=True))


def _equal(wanted: np.ndarray, array: np.ndarray) -> bool:
    return array.dtype == np.float32 and np.array_equal(array.reshape(-1), wanted.reshape(-1))


def _wrong_biases(
    parent: onnx.ModelProto, grids: Grids, floats: Mapping[str, np.ndarray], constants: Mapping[str, np.ndarray]
) -> Iterator[str]:
    for node in parent.graph.node:
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3 or node.input[1] not in grids.weights:
            continue
        bias, grid = floats[node.input[2]], grids.values.get(node.input[0])
        if any(_equal(bias, array) for array in constants.values()):
            continue
        if grid is None:
            yield f"the bias of {node.name} is not in the file"
            continue
        step = (grid.scale * grids.weights[node.input[1]].scale).astype(np.float32)
        wanted = np.rint(bias / step).clip(-(2**31), 2**31 - 1).astype(np.int32)
        if not any(
            array.dtype == np.int32 and np.array_equal(array.reshape(-1), wanted) for array in constants.values()
        ):
            yield f"the bias of {node.name} is not its float parent's"


def _wrong_tables(file: onnx.ModelProto, grids: Grids, floats: Mapping[str, np.ndarray]) -> Iterator[str]:
    found = looked_up_tables(file)
    for name, table in grids.tables.items():
        wanted = _snapped(floats[name], table)
        same = [one for one in found if one.shape == wanted.shape]
        wrong = [int((np.abs(one - wanted) > 1e-6 * np.abs(wanted)).any(axis=1).sum()) for one in same]
        if not wrong or min(wrong):
            rows = f"{min(wrong)} of {len(wanted)} rows differ" if wrong else "it is not in the file"
            yield f"the table {name} ({'x'.join(map(str, wanted.shape))}): {rows}"


def _snapped(values: np.ndarray, table: Table) -> np.ndarray:
    import torch

    numbers: np.ndarray = table.snap(torch.from_numpy(values.copy())).numpy()
    return numbers
