"""INT8 ONNX files: what is quantized, with which types, from which data, and in which form the kernels get it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch.nn import functional

from edgeforge import onnx_graph
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ConfigurationError
from edgeforge.core.stage import Job
from edgeforge.quantizers import Quantizer, _kernels, _qdq
from edgeforge.quantizers._static import signal_to_noise
from edgeforge.quantizers.int8_dynamic import Int8Dynamic
from edgeforge.quantizers.int8_static import Int8Static

if TYPE_CHECKING:
    Digits = Any


def quantized(
    digits: Digits, quantizer: Quantizer, folder: Path, source: Artifact | None = None
) -> tuple[onnx.ModelProto, Mapping[str, Any]]:
    facts = quantizer.quantize(source or digits.onnx("resnet"), digits.job(folder))
    return onnx.load(folder / "model.onnx"), facts


def fused(folder: Path) -> Counter[str]:
    """The operators that ONNX Runtime runs after its own optimizations."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(folder / "model.onnx", options)
    operators = Counter(node.op_type for node in onnx.load(folder / "optimized").graph.node)
    (folder / "optimized").unlink()
    return operators


def types(model: onnx.ModelProto) -> Counter[str]:
    """Element types of the constants with more than one axis, and of the activations."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = Counter(
        f"weight {constants[node.input[0]].dtype}"
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    )
    found.update(
        f"value {constants[node.input[2]].dtype}" for node in model.graph.node if node.op_type == "QuantizeLinear"
    )
    return found


# -- static


def test_a_convolutional_network_is_integers_from_end_to_end(digits: Digits, tmp_path: Path) -> None:
    model, facts = quantized(digits, Int8Static(layout="x86"), tmp_path)
    operators = fused(tmp_path)
    assert operators["QLinearConv"] == 11
    assert operators["QLinearAdd"] == 4
    assert operators["QGemm"] == operators["QLinearGlobalAveragePool"] == operators["QuantizeLinear"] == 1
    assert not {"Conv", "Add", "Gemm", "ReduceMean", "DequantizeLinear", "Relu"} & operators.keys()
    assert facts["coverage_percent"] > 99
    assert (tmp_path / "model.onnx").stat().st_size < 0.32 * (digits.onnx("resnet").path / "model.onnx").stat().st_size
    assert model.opset_import[0].version == 20


def test_types_follow_the_layout(digits: Digits, tmp_path: Path) -> None:
    for layout, value, biases in (("x86", "uint8", 1), ("arm", "int8", 12)):
        model, facts = quantized(digits, Int8Static(layout=layout), tmp_path / layout)
        found = types(model)
        assert found["weight int8"] == 12
        assert found["weight int32"] == biases  # on x86 only where the layer's output is float
        assert found[f"value {value}"] == sum(count for name, count in found.items() if name.startswith("value"))
        assert (facts["weight_type"], facts["activation_type"]) == ("int8", value)
    assert Int8Static().for_layout("arm").layout == "arm"
    assert Int8Static(layout="x86").for_layout("arm").layout == "x86"


def test_transformers_keep_everything_but_layers_in_float(digits: Digits, tmp_path: Path) -> None:
    _, facts = quantized(digits, Int8Static(layout="x86"), tmp_path, digits.onnx("vit"))
    operators = fused(tmp_path)
    assert len(facts["quantized"]) == 20
    assert operators["MatMulIntegerToFloat"] == 18  # every linear layer of three blocks, its bias within
    assert operators["QLinearConv"] == 1
    assert not {"QLinearAdd", "QLinearMul", "QLinearSoftmax", "QLinearMatMul"} & operators.keys()


def test_per_tensor_weights(digits: Digits, tmp_path: Path) -> None:
    quantized(digits, Int8Static(per_channel=False), tmp_path)
    record = json.loads((tmp_path / "quantization.json").read_text())
    assert all(entry["axis"] is None for entry in record["weights"].values())


def test_the_test_split_is_never_read(digits: Digits, tmp_path: Path) -> None:
    asked: list[tuple[str, int]] = []

    class Data:
        interface = digits.data.interface

        def size(self, split: str) -> int:
            return int(digits.data.size(split))

        def batch(self, split: str, indices: Any, *, augment_seed: int | None = None) -> Any:
            assert augment_seed is None
            asked.append((split, len(indices)))
            return digits.data.batch(split, indices)

    class Task:
        kind = "image_classification"

        def open(self, model: Path | None = None) -> Data:
            return Data()

    job = digits.job(tmp_path)
    job = Job(Task(), job.folder, 0, job.make_accelerator, job.progress)  # type: ignore[arg-type]
    facts = Int8Static(samples=50, sensitive=1).quantize(digits.onnx("resnet"), job)
    assert {split for split, _ in asked} == {"train", "validation"}
    assert facts["samples"] == sum(count for split, count in asked if split == "train") == 50


def test_the_same_seed_gives_the_same_bytes(digits: Digits, tmp_path: Path) -> None:
    for name in ("one", "two"):
        quantized(digits, Int8Static(samples=64, calibration="entropy"), tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_layers_that_are_kept_stay_float(digits: Digits, tmp_path: Path) -> None:
    first = "resnet.embedder.embedder.convolution"
    _, facts = quantized(digits, Int8Static(keep=("resnet.embedder", "classifier.?")), tmp_path)
    assert facts["kept_float"] == {first: "named in keep", "classifier.1": "named in keep"}
    assert first not in facts["quantized"]
    operators = fused(tmp_path)
    assert (operators["QLinearConv"], operators["Conv"] + operators["FusedConv"], operators["Gemm"]) == (10, 1, 1)
    with pytest.raises(
        ConfigurationError, match=r"no layer is named 'clasifier\.1'; perhaps you meant 'classifier\.1'"
    ):
        quantized(digits, Int8Static(keep=("clasifier.1",)), tmp_path)


def test_the_most_sensitive_layer_is_found(digits: Digits, tmp_path: Path) -> None:
    """A layer whose weights eight bits cannot hold: one channel's largest weight is a thousand times the others."""
    name = "resnet.encoder.stages.1.layers.1.layer.0.convolution"
    model = onnx.load(digits.onnx("resnet").path / "model.onnx")
    (node,) = [node for node in model.graph.node if node.name == name]
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == node.input[1]]
    weight = numpy_helper.to_array(tensor).copy()
    weight[:, 0, 0, 0] += 1000 * np.abs(weight).max()
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    source = tmp_path / "source"
    source.mkdir()
    onnx.save(model, source / "model.onnx")
    _, facts = quantized(digits, Int8Static(sensitive=1), tmp_path, digits.artifact(source, "onnx"))
    assert list(facts["kept_float"]) == [name]
    ranked = sorted(facts["sensitivity_db"].values())
    assert facts["sensitivity_db"][name] == ranked[0] < ranked[1] - 6


def test_signal_to_noise_is_in_decibels() -> None:
    assert signal_to_noise(np.full(4, 10.0), np.full(4, 9.0)) == pytest.approx(20)
    assert signal_to_noise(np.ones(4), np.ones(4)) == 200


def test_channels_of_zeros_keep_their_bias(digits: Digits, tmp_path: Path) -> None:
    """Their scale is free, and must not make the bias coarse: with 1 it would be a multiple of the input's step."""
    model = onnx.load(digits.onnx("resnet").path / "model.onnx")
    nodes = [node for node in model.graph.node if node.name == "classifier.1"]
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weight, bias = (numpy_helper.to_array(tensors[name]).copy() for name in nodes[0].input[1:])
    weight[4], bias[4] = 0, 0.0123
    for name, array in zip(nodes[0].input[1:], (weight, bias), strict=True):
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))
    source = tmp_path / "source"
    source.mkdir()
    onnx.save(model, source / "model.onnx")
    quantized(digits, Int8Static(layout="arm"), tmp_path, digits.artifact(source, "onnx"))
    inputs = {"pixel_values": digits.data.batch("validation", range(5))["pixel_values"].numpy()}
    (logits,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, inputs)
    np.testing.assert_allclose(logits[:, 4], 0.0123, atol=1e-4)


def test_companions_and_metadata_come_along(digits: Digits, tmp_path: Path) -> None:
    for quantizer in (Int8Static(samples=16), Int8Dynamic()):
        folder = tmp_path / quantizer.kind
        model, _ = quantized(digits, quantizer, folder)
        before = onnx.load(digits.onnx("resnet").path / "model.onnx")
        assert list(model.metadata_props) == list(before.metadata_props)
        assert {path.name for path in folder.iterdir()} == {*digits.onnx("resnet").files, "quantization.json"}


@pytest.mark.parametrize("quantizer", [Int8Static(samples=16), Int8Static(samples=16, layout="arm"), Int8Dynamic()])
def test_no_written_file_tells_where_it_was_made(digits: Digits, tmp_path: Path, quantizer: Quantizer) -> None:
    quantized(digits, quantizer, tmp_path, digits.onnx("vit"))
    repository = Path(onnx_graph.__file__).parent.parent
    for path in tmp_path.iterdir():
        for word in (str(repository), str(Path.home()), str(digits.root), "site-packages", ".py", "onnx.quantize"):
            assert word.encode() not in path.read_bytes(), f"{path.name} holds {word}"


# -- the form that kernels like


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize(
    ("kernel", "pads"), [(7, (3, 3)), (3, (1, 1)), (3, (0, 1)), (5, (2, 2)), (2, (0, 0)), (1, (0, 0))]
)
def test_a_folded_stem_is_the_same_convolution(channels: int, kernel: int, pads: tuple[int, int]) -> None:
    """Against torch: in float64 integers, so equal means equal."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (4, channels, kernel, kernel)).astype(np.int8)
    image = torch.from_numpy(rng.integers(0, 256, (2, channels, 12, 16))).double()
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[pads[0], pads[0], pads[1], pads[1]])
    folded = _kernels._folded(node, weight, (None, channels, 12, 16))
    assert folded is not None
    small, (top, left, bottom, right) = folded
    squares = functional.pixel_unshuffle(image, 2)  # channel-major; SpaceToDepth is square-major
    squares = squares.reshape(2, channels, 4, 6, 8).transpose(1, 2).reshape(2, 4 * channels, 6, 8)
    found = functional.conv2d(functional.pad(squares, (left, right, top, bottom)), torch.from_numpy(small).double())
    padded = functional.pad(image, (pads[0], pads[1], pads[0], pads[1]))
    assert torch.equal(found, functional.conv2d(padded, torch.from_numpy(weight).double(), stride=2))


@pytest.mark.parametrize(
    ("channels", "height", "attributes"),
    [
        (4, 12, {"strides": [2, 2]}),  # wide enough as it is
        (1, 11, {"strides": [2, 2]}),
        (1, 12, {"strides": [1, 1]}),
        (1, 12, {"strides": [2, 2], "dilations": [2, 2]}),
        (1, 12, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ],
)
def test_other_stems_stay_as_they_are(channels: int, height: int, attributes: dict[str, Any]) -> None:
    weight = np.ones((4, channels, 3, 3), np.int8)
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    assert _kernels._folded(node, weight, (None, channels, height, 12)) is None


def test_the_stem_of_the_file_is_folded(digits: Digits, tmp_path: Path) -> None:
    model, _ = quantized(digits, Int8Static(), tmp_path)
    # On floats, which every version of the runtime can do; on integers only newer ones can.
    assert [node.op_type for node in model.graph.node if node.input[0] == "pixel_values"] == ["SpaceToDepth"]


def test_means_over_other_axes_stay_means() -> None:
    value = helper.make_tensor_value_info
    for axes, keep, rank, pooled in (
        ([2, 3], 1, 4, True),
        ([-1, -2], 1, 4, True),
        ([1], 1, 4, False),
        ([2, 3], 0, 4, False),
    ):
        graph = helper.make_graph(
            [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=keep)],
            "graph",
            [value("x", onnx.TensorProto.FLOAT, ["batch", *[3] * (rank - 1)])],
            [value("y", onnx.TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.array(axes, np.int64), "axes")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        (node,) = _qdq.prepare(model).graph.node
        assert (node.op_type == "GlobalAveragePool") is pooled
        assert model.graph.node[0].op_type == "ReduceMean"  # the original is untouched


# -- dynamic


def test_dynamic_quantizes_products_only(digits: Digits, tmp_path: Path) -> None:
    model, facts = quantized(digits, Int8Dynamic(), tmp_path, digits.onnx("vit"))
    operators = Counter(node.op_type for node in model.graph.node)
    assert (operators["MatMulInteger"], operators["Conv"], operators["MatMul"]) == (19, 1, 6)
    assert facts["kept_float"] == {"vit.embeddings.patch_embeddings.projection": "a convolution"}
    assert len(facts["quantized"]) == 19
    assert 90 < facts["coverage_percent"] < 100
    weights = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    assert sum(array.dtype == np.int8 and array.ndim == 2 for array in weights) == 19


def test_dynamic_says_what_it_does_not_do(digits: Digits, tmp_path: Path) -> None:
    assert "convolutions are far slower" in (Int8Dynamic().advice("onnx", "images") or "")
    _, facts = quantized(digits, Int8Dynamic(), tmp_path)
    assert facts["quantized"] == ["classifier.1"]
    assert facts["coverage_percent"] < 2


def branches() -> onnx.ModelProto:
    """Three convolutions concatenated, averaged, reshaped to a computed shape, and classified."""
    rng = np.random.default_rng(0)
    value, node = helper.make_tensor_value_info, helper.make_node
    constants = {name: rng.normal(size=(4, 1, 3, 3)).astype(np.float32) for name in "abc"}
    constants |= {"axes": np.array([2, 3]), "zero": np.array([0]), "twelve": np.array([12])}
    constants["weight"] = rng.normal(size=(10, 12)).astype(np.float32)
    nodes = [
        *(node("Conv", ["pixel_values", name], [f"{name}1"], name=name) for name in "abc"),
        node("Concat", ["a1", "b1", "c1"], ["all"], axis=1),
        node("ReduceMean", ["all", "axes"], ["mean"]),
        node("Shape", ["pixel_values"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"]),
        node("Concat", ["batch", "twelve"], ["flat"], axis=0),
        node("Reshape", ["mean", "flat"], ["pooled"]),
        node("Gemm", ["pooled", "weight"], ["logits"], name="classifier", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "branches",
        [value("pixel_values", onnx.TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [value("logits", onnx.TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_branches_that_meet_and_computed_shapes(digits: Digits, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    onnx.save(branches(), source / "model.onnx")
    _, facts = quantized(digits, Int8Static(), tmp_path / "int8", digits.artifact(source, "onnx"))
    assert facts["coverage_percent"] == 100
    operators = fused(tmp_path / "int8")
    assert (operators["QLinearConv"], operators["QLinearConcat"], operators["QGemm"]) == (3, 1, 1)
    inputs = {"pixel_values": digits.data.batch("validation", range(20))["pixel_values"].numpy()}
    before, after = (
        onnxruntime.InferenceSession(folder / "model.onnx").run(None, inputs)[0]
        for folder in (source, tmp_path / "int8")
    )
    assert signal_to_noise(before, after) > 30
