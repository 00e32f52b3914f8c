"""Where the numbers of a quantized file lie, from what its quantizer recorded and the float file's own weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


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
        integers = (steps(values, scale) + zero_point).clamp(int(limits.min), int(limits.max))
        return (integers - zero_point) * scale.to(values.dtype)

    def _shaped(self, array: np.ndarray, rank: int) -> np.ndarray:
        return array.reshape(along(self.axis, rank))


@dataclass(frozen=True)
class Table:
    """An embedding table's grid: `bits` wide, symmetric, a scale per row and `block_size` columns (null: per row).

    8 bits: the largest magnitude is 127. 4 bits: the number of the largest magnitude, with its sign, is -8.
    """

    bits: int
    block_size: int | None

    def snap(self, values: torch.Tensor) -> torch.Tensor:
        """The nearest numbers of the grid, in the dtype of `values`, which has two axes."""
        import torch

        size = self.block_size or values.shape[1]
        blocks = [self._block(part) for part in torch.split(values.to(torch.float32), size, dim=1)]
        return torch.cat(blocks, dim=1).to(values.dtype)

    def _block(self, values: torch.Tensor) -> torch.Tensor:
        import torch

        largest = values.gather(1, values.abs().argmax(dim=1, keepdim=True))
        scale = largest.abs() / 127 if self.bits == 8 else largest / -8
        scale = torch.where(scale == 0, 1.0, scale)
        low, high = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return (values / scale).round().clamp(low, high).double() * scale.double()


def along(axis: int | None, rank: int) -> list[int]:
    """The shape in which numbers per `axis` broadcast over a tensor of `rank`."""
    return [] if axis is None else [-1 if other == axis % rank else 1 for other in range(rank)]


def steps(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Values in steps of `scale`, ties to even, in the dtype of `values`.

    QuantizeLinear divides float32 by float32, which decides ties: pixels often lie halfway between two steps.
    """
    return (values.to(scale.dtype) / scale).round().to(values.dtype)


@dataclass(frozen=True)
class Grids:
    """``quantization.json``: the grids of values, weights and embedding tables by their names in the float file.

    With `dynamic`, the input of a layer whose weight has a grid gets one too, from its own extremes. Values in
    `layers_only` have their grids where such layers read them, and nowhere else. The bias of a layer whose
    input and weight have grids is rounded to the product of their steps, unless `float_biases` names it.
    """

    dynamic: bool = False
    layers_only: frozenset[str] = frozenset()
    float_biases: frozenset[str] = frozenset()
    values: Mapping[str, Grid] = field(default_factory=dict)
    weights: Mapping[str, Grid] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Grids:
        """The content of the file."""
        return cls(
            dynamic=record["scheme"] == "dynamic",
            layers_only=frozenset(record.get("layers_only", ())),
            values={name: Grid.read(entry) for name, entry in record["values"].items()},
            weights={name: Grid.read(entry) for name, entry in record["weights"].items()},
            tables={name: Table(**entry) for name, entry in record.get("tables", {}).items()},
        )

    def value(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """A value of the float file as all that reads it has it in the quantized file."""
        return values if name in self.layers_only or name not in self.values else self.values[name].snap(values)

    def constant(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """A constant of the float file as the quantized file has it."""
        grid = self.tables.get(name) or self.weights.get(name)
        return values if grid is None else grid.snap(values)


def dynamic_grid(values: torch.Tensor) -> Grid:
    """ONNX's DynamicQuantizeLinear: 0 to 255 span the extremes of all the batch, zero among them."""
    low, high = np.float32(min(float(values.min()), 0.0)), np.float32(max(float(values.max()), 0.0))
    scale = (high - low) / np.float32(255) or np.float32(1)
    zero_point = np.rint(np.clip(-low / scale, 0, 255)).astype(np.uint8)
    return Grid("uint8", np.asarray(scale, dtype=np.float32), np.asarray(zero_point), None)
