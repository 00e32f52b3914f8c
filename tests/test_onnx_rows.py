"""Rows of integer tables, as ONNX Runtime gathers them, against numpy."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeforge.onnx_rows import IntegerTable, gathers_rows, lookup

IDS = np.array([[0, 5, 5], [4, -1, 2]])


def table(bits: int, columns: int, block_size: int | None) -> IntegerTable:
    rng = np.random.default_rng(0)
    integers = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (6, columns)).astype(np.int8)
    blocks = -(-columns // block_size) if block_size else 1
    return IntegerTable(bits, integers, rng.normal(size=(6, blocks)).astype(np.float32), block_size)


def gather(name: str = "table", axis: int = 0) -> onnx.NodeProto:
    return helper.make_node("Gather", [name, "ids"], ["rows"], axis=axis)


def run(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], columns: int) -> np.ndarray:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", "length", columns])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    found: np.ndarray = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"ids": IDS})[0]
    return found


def expected(item: IntegerTable) -> np.ndarray:
    columns = item.integers.shape[1]
    scales = np.repeat(item.scales, item.block_size or columns, axis=1)[:, :columns]
    floats: np.ndarray = (item.integers.astype(np.float64) * scales)[IDS]
    return floats


@pytest.mark.parametrize(
    ("bits", "columns", "block_size", "operators"),
    [
        (8, 40, None, ["Gather", "Cast", "Gather", "Mul"]),
        (8, 41, None, ["Gather", "Cast", "Gather", "Mul"]),
        (8, 64, 32, ["GatherBlockQuantized"]),
        (4, 64, 32, ["GatherBlockQuantized"]),
        (4, 40, 32, ["GatherBlockQuantized"]),  # the last block has 8 columns
        (4, 40, None, ["GatherBlockQuantized"]),
        (4, 300, None, ["GatherBlockQuantized"]),
        (4, 96, 48, ["GatherBlockQuantized"]),  # no power of two: said as three blocks of 16
        (4, 2, None, ["GatherBlockQuantized"]),
    ],
)
def test_rows_are_integers_times_scales(bits: int, columns: int, block_size: int | None, operators: list[str]) -> None:
    item = table(bits, columns, block_size)
    written = lookup(gather(), item)
    assert written is not None
    nodes, constants = written
    assert [node.op_type for node in nodes] == operators
    np.testing.assert_allclose(run(nodes, dict(constants), columns), expected(item), rtol=1e-6)


def test_4_bits_take_half_a_byte() -> None:
    written = lookup(gather(), table(4, 64, 32))
    assert written is not None
    assert sorted(array.nbytes for array in written[1].values()) == [6 * 2 * 4, 6 * 32]


@pytest.mark.parametrize(("bits", "columns", "block_size"), [(4, 41, None), (4, 64, 8), (8, 60, 12)])
def test_what_the_runtime_cannot_say_is_left_to_others(bits: int, columns: int, block_size: int | None) -> None:
    assert lookup(gather(), table(bits, columns, block_size)) is None


def test_only_rows_of_that_table_count() -> None:
    assert gathers_rows(gather(), "table")
    assert not gathers_rows(gather("other"), "table")
    assert not gathers_rows(gather(axis=1), "table")
    assert not gathers_rows(helper.make_node("MatMul", ["table", "ids"], ["rows"]), "table")
