"""OpenVINO files: what is in a graph, and that writing it is repeatable."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeforge import openvino_graph
from edgeforge.core.errors import ModelError

WEIGHT = np.arange(-4, 4, dtype=np.int8).reshape(2, 4)
SCALES = np.array([[0.5], [0.25]], dtype=np.float32)


def product(bits: int = 8) -> Any:
    """x (N, 4) times a weight of two rows that is kept as integers, plus a bias."""
    ov = openvino_graph.load_openvino()
    from openvino import opset13 as ops

    kind = ov.Type.i8 if bits == 8 else ov.Type.i4
    value = ops.parameter([-1, 4], np.float32, name="x")
    value.output(0).set_names({"x"})
    weight = ops.multiply(
        ops.convert(ov.op.Constant(kind, ov.Shape([2, 4]), WEIGHT.reshape(-1).tolist()), "f32"), SCALES
    )
    layer = ops.matmul(value, weight, False, True)
    layer.set_friendly_name("layer")
    result = ops.add(layer, np.array([1, 2], dtype=np.float32))
    result.output(0).set_names({"logits"})
    return ov.Model([result], [value], "small")


@pytest.mark.parametrize("bits", [4, 8])
def test_integers_are_found_and_multiplied_out(bits: int) -> None:
    model = product(bits)
    (layer,) = openvino_graph.layers(model).values()
    assert list(openvino_graph.layers(model)) == ["layer"]
    assert openvino_graph.is_quantized(layer)
    np.testing.assert_array_equal(openvino_graph.integers(openvino_graph.stored(layer.weight)), WEIGHT)
    np.testing.assert_array_equal(openvino_graph.scales(layer), SCALES)
    np.testing.assert_array_equal(openvino_graph.constant(layer.weight), WEIGHT * SCALES)
    np.testing.assert_array_equal(openvino_graph.biases(model)["layer"], [1, 2])
    assert openvino_graph.numbers(model) == 8 + 2  # scales stand for none of the model's own numbers


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        size = openvino_graph.save(product(), folder, metadata={"labels": '["a", "<b>"]'})
        assert size == sum(path.stat().st_size for path in folder.iterdir())
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    read = openvino_graph.load(tmp_path / "one")
    assert openvino_graph.metadata(read) == {"labels": '["a", "<b>"]'}
    assert [value.any_name for value in (*read.inputs, *read.outputs)] == ["x", "logits"]
    assert list(openvino_graph.layers(read)) == ["layer"]
    assert openvino_graph.metadata(product()) == {}


def test_a_file_that_is_missing_cut_or_something_else(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        openvino_graph.load(tmp_path)
    openvino_graph.save(product(), tmp_path, metadata={})
    for name, left in ((openvino_graph.WEIGHTS, 8), (openvino_graph.MODEL, 300), (openvino_graph.MODEL, 0)):
        path = tmp_path / name
        content = path.read_bytes()
        path.write_bytes(content[:left])
        with pytest.raises(ModelError, match="not a whole OpenVINO file"):
            openvino_graph.load(tmp_path)
        path.write_bytes(content)
    (tmp_path / openvino_graph.MODEL).write_bytes(b"\xff\xfe not xml")
    with pytest.raises(ModelError, match="not a whole OpenVINO file"):
        openvino_graph.load(tmp_path)


def test_nothing_is_reported_to_anyone() -> None:
    openvino_graph.load_openvino()
    with pytest.raises(ImportError):
        import openvino_telemetry  # noqa: F401
    assert sys.modules["openvino_telemetry"] is None
