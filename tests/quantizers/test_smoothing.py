"""SmoothQuant: the factors against the paper's formula, the float graph against itself, and what it is good for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeforge.core.artifact import Artifact
from edgeforge.quantizers import Quantizer
from edgeforge.quantizers._smoothing import groups, smooth
from edgeforge.quantizers.int8_static import Int8Static
from edgeforge.quantizers.smooth_quant import SmoothQuant

if TYPE_CHECKING:
    Digits = Any
    Mails = Any

RNG = np.random.default_rng(0)
CONSTANTS = {
    "gamma": RNG.uniform(0.5, 2, 6).astype(np.float32),
    "beta": RNG.normal(size=6).astype(np.float32),
    "left": RNG.normal(size=(6, 4)).astype(np.float32),
    "right": RNG.normal(size=(4, 6)).astype(np.float32),
    "residual": np.ones((6, 4), np.float32),
}


def graph(*, residual: bool) -> onnx.ModelProto:
    """A LayerNormalization that a MatMul and a transposed Gemm read, and, with `residual`, a sum."""
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("LayerNormalization", ["x", "gamma", "beta"], ["n"]),
        node("MatMul", ["n", "left"], ["a"], name="first"),
        node("Gemm", ["n", "right"], ["b"], name="second", transB=1),
        node("Add", ["a", "b"], ["c"]),
        *([node("Relu", ["n"], ["r"]), node("MatMul", ["r", "residual"], ["d"], name="third")] if residual else []),
        node("Add", ["c", "d" if residual else "b"], ["y"]),
    ]
    read = {name for item in nodes for name in item.input}
    made = helper.make_graph(
        nodes,
        "graph",
        [value("x", TensorProto.FLOAT, ["batch", 6])],
        [value("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(array, name) for name, array in CONSTANTS.items() if name in read],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def outputs(model: onnx.ModelProto, **inputs: np.ndarray) -> np.ndarray:
    found: np.ndarray = onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)[0]
    return found


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.85, 1.0])
def test_the_function_stays_and_the_factors_are_the_papers(residual: bool, alpha: float) -> None:
    model, x = graph(residual=residual), RNG.normal(size=(50, 6)).astype(np.float32)
    before = outputs(model, x=x)
    (group,) = groups(model, {})
    assert (group.value, group.layers, group.alone) == ("n", ("first", "second"), not residual)
    centred = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    largest = np.abs(centred * CONSTANTS["gamma"] + CONSTANTS["beta"]).max(axis=0)
    (done,) = smooth(model, [group], {"n": largest}, alpha)
    weights = np.maximum(np.abs(CONSTANTS["left"]).max(axis=1), np.abs(CONSTANTS["right"]).max(axis=0))
    np.testing.assert_allclose(done.factors, largest**alpha / weights ** (1 - alpha), rtol=1e-5)
    np.testing.assert_allclose(outputs(model, x=x), before, rtol=1e-5, atol=1e-5)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_allclose(constants["left"], CONSTANTS["left"] * done.factors[:, None], rtol=1e-6)
    np.testing.assert_allclose(constants["right"], CONSTANTS["right"] * done.factors, rtol=1e-6)
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["Mul"] == (1 if residual else 0)


def test_channels_of_zeros_are_left_alone() -> None:
    model = graph(residual=False)
    (group,) = groups(model, {})
    (done,) = smooth(model, [group], {"n": np.array([0.0, 1, 1, 1, 1, 1], np.float32)}, 0.5)
    assert done.factors[0] == 1
    assert np.isfinite(done.factors).all()


def test_layers_that_stay_float_and_shared_weights_are_not_smoothed() -> None:
    model = graph(residual=False)
    (group,) = groups(model, {"first": "named in keep"})
    assert (group.layers, group.alone) == (("second",), False)
    assert groups(model, {"first": "", "second": ""}) == []
    model.graph.node.append(helper.make_node("MatMul", ["x", "left"], ["z"], name="again"))
    assert groups(model, {})[0].layers == ("second",)


def with_outliers(digits: Digits, folder: Path, times: float) -> Artifact:
    """The tiny ViT with one channel in front of every layer `times` as large, and weights that undo it."""
    model = onnx.load(digits.onnx("vit").path / "model.onnx")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    for group in groups(model, {}):
        (normalization,) = [node for node in model.graph.node if group.value in node.output]
        for name in normalization.input[1:]:
            array = numpy_helper.to_array(tensors[name]).copy()
            array[3] *= times
            tensors[name].CopyFrom(numpy_helper.from_array(array, name))
        for layer in group.layers:
            name = nodes[layer].input[1]
            weight = numpy_helper.to_array(tensors[name]).copy()
            weight[3] /= times
            tensors[name].CopyFrom(numpy_helper.from_array(weight, name))
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    return digits.artifact(folder, "onnx")  # type: ignore[no-any-return]


def error(digits: Digits, quantizer: Quantizer, source: Artifact, folder: Path) -> float:
    """Root mean square error of the quantized file's logits, relative to theirs."""
    quantizer.quantize(source, digits.job(folder))
    inputs = {"pixel_values": digits.data.batch("validation", range(20))["pixel_values"].numpy()}
    before, after = (
        onnxruntime.InferenceSession(path / "model.onnx").run(None, inputs)[0] for path in (source.path, folder)
    )
    return float(np.sqrt(np.square(after - before).mean() / np.square(before).mean()))


def test_outliers_cost_less(digits: Digits, tmp_path: Path) -> None:
    source = with_outliers(digits, tmp_path / "source", 100)
    plain = error(digits, Int8Static(samples=64), source, tmp_path / "plain")
    smoothed = error(digits, SmoothQuant(samples=64), source, tmp_path / "smoothed")
    assert smoothed < plain / 4


def test_where_the_division_goes(digits: Digits, mails: Mails, tmp_path: Path) -> None:
    """A transformer that normalises first pays nothing; BERT's residual reads the value too."""
    for name, source, job in (("vit", digits.onnx("vit"), digits.job), ("bert", mails.onnx("bert"), mails.job)):
        facts = SmoothQuant(samples=16).quantize(source, job(tmp_path / name))
        before = Counter(node.op_type for node in onnx.load(source.path / "model.onnx").graph.node)
        after = Counter(node.op_type for node in onnx.load(tmp_path / name / "model.onnx").graph.node)
        record = json.loads((tmp_path / name / "quantization.json").read_text())
        assert facts["smoothed"] == len(record["smoothed"]) == 6
        assert {entry["folded"] for entry in record["smoothed"]} == {name == "vit"}
        tables = 2 if name == "bert" else 0  # words and positions: a multiplication each
        assert after["Mul"] - before["Mul"] == tables + (0 if name == "vit" else 6)


def test_networks_without_normalization_are_told(digits: Digits, tmp_path: Path) -> None:
    job = digits.job(tmp_path)
    facts = SmoothQuant(samples=16).quantize(digits.onnx("resnet"), job)
    assert "smoothed" not in facts
    assert "no LayerNormalization" in job.progress.warnings[0]


def test_the_layout_is_the_devices() -> None:
    assert SmoothQuant().for_layout("arm").layout == "arm"
    assert SmoothQuant(layout="x86").for_layout("arm").layout == "x86"
