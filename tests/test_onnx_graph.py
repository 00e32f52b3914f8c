"""Reading, compacting and writing ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeforge import onnx_graph
from edgeforge.core.errors import EnvironmentProblem, ModelError


def small() -> onnx.ModelProto:
    """(x + a) * b - a', with equal constants, an unread one, typed fields, names and documentation."""
    ones = np.full(3, -1, dtype=np.float32)
    nodes = [
        helper.make_node("Add", ["x", "constant_one"], ["a_long_name"], name="add", doc_string="/home/me/model.py"),
        helper.make_node("Mul", ["a_long_name", "constant_two"], ["another_long_name"], name="layer"),
        helper.make_node("Sub", ["another_long_name", "a"], ["y"], name="sub"),
    ]
    nodes[1].metadata_props.add(key="stack_trace", value="/home/me/model.py line 3")
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [
            helper.make_tensor("constant_one", TensorProto.FLOAT, [3], ones),
            numpy_helper.from_array(np.array([2, 3, 4], np.float32), "constant_two"),
            numpy_helper.from_array(ones, "a"),
            numpy_helper.from_array(ones, "unread"),
        ],
        value_info=[helper.make_tensor_value_info("a_long_name", TensorProto.FLOAT, ["batch", 3])],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, doc_string="/home/me")


def result(model: onnx.ModelProto) -> np.ndarray:
    inputs = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    return ReferenceEvaluator(model).run(None, inputs)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("quantized", "constants"), [(False, 2), (True, 3)])
def test_compacting_changes_bytes_and_not_results(quantized: bool, constants: int) -> None:
    model = small()
    before, size = result(model), model.ByteSize()
    onnx_graph.compact(model, quantized=quantized)
    np.testing.assert_array_equal(result(model), before)
    assert model.ByteSize() < 0.6 * size
    assert b"/home" not in model.SerializeToString()
    assert len(model.graph.initializer) == constants
    assert [node.name for node in model.graph.node] == ([""] * 3 if quantized else ["add", "layer", "sub"])
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 20)]
    names = {name for node in model.graph.node for name in (*node.input, *node.output)}
    assert max(map(len, names)) == 1
    onnx.checker.check_model(model, full_check=True)


def test_short_names_spare_those_of_inputs_and_outputs() -> None:
    model = small()
    for node in model.graph.node:
        node.input[:] = ["b" if name == "x" else name for name in node.input]
    model.graph.input[0].name = "b"
    before = ReferenceEvaluator(model).run(None, {"b": np.ones((1, 3), np.float32)})[0]
    onnx_graph.compact(model, quantized=False)
    np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, {"b": np.ones((1, 3), np.float32)})[0], before)


def test_saved_files_load_and_leave_nothing_beside(tmp_path: Path) -> None:
    model = small()
    size = onnx_graph.save(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").stat().st_size == size
    assert onnx_graph.load(tmp_path) == model


def test_files_that_are_no_onnx(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        onnx_graph.load(tmp_path)
    content = small().SerializeToString()
    (tmp_path / "model.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="not a whole ONNX file"):
        onnx_graph.load(tmp_path)


def test_what_the_checker_refuses_is_not_written(tmp_path: Path) -> None:
    model = small()
    model.graph.node[0].input[1] = "nowhere"
    with pytest.raises(ModelError, match="not valid ONNX"):
        onnx_graph.save(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        onnx_graph.save(small(), tmp_path / "missing")


def test_known_shapes_leave_the_batch_open() -> None:
    model = small()
    model.graph.ClearField("value_info")
    assert onnx_graph.known_shapes(model)["another_long_name"] == (None, 3)
