"""Embedding tables of ONNX files in 8 or 4 bits: in small encoders they are most of the file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from edgeforge import onnx_graph
from edgeforge.onnx_rows import MICROSOFT, IntegerTable, gathers_rows, lookup

if TYPE_CHECKING:
    import onnx

Embeddings = Annotated[
    Literal["float", "int8", "int4"],
    Field(
        description="Embedding tables: as they are, 8-bit integers with a scale per row, or 4-bit integers with a "
        "scale per 32 numbers (com.microsoft.GatherBlockQuantized). Those of fewer than 16 rows stay float."
    ),
]

MIN_ROWS = 16
BLOCK = 32


@dataclass(frozen=True)
class Table:
    """How a table was quantized. Its numbers follow from its weights, see `integer_table`."""

    bits: int
    block_size: int | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def quantize_embeddings(model: onnx.ModelProto, choice: str) -> dict[str, Table]:
    """Replace, in place, the float tables whose rows are looked up; constant name -> how it was quantized."""
    from onnx import numpy_helper

    readers = onnx_graph.consumers(model)
    found: dict[str, Table] = {}
    for name, weight in onnx_graph.initializers(model).items() if choice != "float" else ():
        nodes = readers.get(name, [])
        if weight.dtype != np.float32 or weight.ndim != 2 or len(weight) < MIN_ROWS:
            continue
        if not nodes or not all(gathers_rows(node, name) for node in nodes):
            continue
        # Two 4-bit integers make a byte.
        table = Table(4, BLOCK) if choice == "int4" and weight.shape[1] % 2 == 0 else Table(8, None)
        constants: dict[str, np.ndarray] = {}
        for node in nodes:
            written = lookup(node, integer_table(weight, table))
            assert written is not None
            position = list(model.graph.node).index(node)
            model.graph.node.remove(node)
            for offset, new in enumerate(written[0]):
                model.graph.node.insert(position + offset, new)
            constants.update(written[1])
        model.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in constants.items())
        found[name] = table
    if any(table.bits == 4 for table in found.values()):
        model.opset_import.add(domain=MICROSOFT, version=1)
    return found


def integer_table(weight: np.ndarray, table: Table) -> IntegerTable:
    """Round to nearest, symmetric about zero, float32 scales.

    8 bits: the row's largest magnitude is 127. 4 bits: the block's number of largest magnitude is -8, with a negative
    scale where it is positive, so that all 16 values are used (a quarter less squared error than 7 for the largest).
    """
    rows, columns = weight.shape
    size = table.block_size or columns
    blocks = -(-columns // size)
    values = np.pad(weight, ((0, 0), (0, blocks * size - columns))).reshape(rows, blocks, size)
    largest = np.take_along_axis(values, np.abs(values).argmax(axis=2)[..., None], axis=2)
    scales = np.abs(largest) / np.float32(127) if table.bits == 8 else largest / np.float32(-8)
    scales = np.where(scales == 0, np.float32(1), scales)
    low, high = -(2 ** (table.bits - 1)), 2 ** (table.bits - 1) - 1
    integers = np.rint(values / scales).clip(low, high).astype(np.int8).reshape(rows, -1)[:, :columns]
    return IntegerTable(table.bits, np.ascontiguousarray(integers), scales[..., 0], table.block_size)
