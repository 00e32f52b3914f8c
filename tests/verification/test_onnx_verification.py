"""ONNX files that are right pass, and no broken one does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from edgeforge.core.artifact import Artifact
from edgeforge.exporters.onnx import Onnx
from edgeforge.models import loading
from edgeforge.quantizers import Quantizer
from edgeforge.quantizers.int4_weights import Int4Weights
from edgeforge.quantizers.int8_dynamic import Int8Dynamic
from edgeforge.quantizers.int8_static import Int8Static
from edgeforge.quantizers.int8_weights import Int8Weights
from edgeforge.verification import differences, outcome, verification_of
from edgeforge.verification import onnx as verification
from edgeforge.verification.onnx import verify

if TYPE_CHECKING:
    Digits = Any

SCHEMES: dict[str, Quantizer | None] = {
    "float": None,
    "x86": Int8Static(layout="x86"),
    "arm": Int8Static(layout="arm"),
    "dynamic": Int8Dynamic(),
    "int4": Int4Weights(min_elements=64),
    "int8": Int8Weights(min_elements=64),
}
FAST = {
    ("resnet", "float"),
    ("resnet", "x86"),
    ("resnet", "arm"),
    ("resnet", "int4"),
    ("vit", "x86"),
    ("vit", "dynamic"),
}
MATRIX = [
    pytest.param(family, scheme, marks=() if (family, scheme) in FAST else pytest.mark.slow)
    for family in ("resnet", "mobilenet_v2", "vit", "convnext")
    for scheme in SCHEMES
]


@dataclass
class Case:
    """A written file and the artifacts it came from."""

    digits: Digits
    inputs: dict[str, Artifact]

    def verify(self) -> Mapping[str, Any]:
        folder = self.inputs["file"].path
        inputs = {**self.inputs, "file": self.digits.artifact(folder, "onnx")}
        facts = verify(inputs, self.digits.job(folder.parent / "verify"))
        assert json.loads(json.dumps(facts, allow_nan=False)) == facts
        return facts

    def edit(self) -> Edit:
        return Edit(self.inputs["file"].path / "model.onnx")


class Edit:
    """Change a file's model; written back on leaving the block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = onnx.load(path)
        self.nodes = self.model.graph.node
        self.tensors = {tensor.name: tensor for tensor in self.model.graph.initializer}

    def __enter__(self) -> Edit:
        return self

    def __exit__(self, *_: object) -> None:
        self.path.write_bytes(self.model.SerializeToString())

    def get(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.tensors[name]).copy()

    def set(self, name: str, array: np.ndarray) -> None:
        self.tensors[name].CopyFrom(numpy_helper.from_array(np.array(array, order="C"), name))

    def of(self, operator: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type == operator]

    def decoders(self, kind: type, rank: int) -> list[onnx.NodeProto]:
        """The DequantizeLinear nodes of constants of this type and rank."""
        found = [node for node in self.of("DequantizeLinear") if node.input[0] in self.tensors]
        return [
            node for node in found if self.get(node.input[0]).dtype == kind and self.get(node.input[0]).ndim == rank
        ]


def build(digits: Digits, family: str, scheme: str, folder: Path) -> Case:
    model, source, quantizer = digits.torch(family), digits.onnx(family), SCHEMES[scheme]
    inputs = {"model": model, "reference": model}
    if quantizer is None:
        shutil.copytree(source.path, folder / "file")
    elif "torch" in quantizer.accepts:
        quantizer.quantize(model, digits.job(folder / "reference"))
        inputs["reference"] = digits.artifact(folder / "reference", "torch")
        Onnx().export(inputs["reference"], digits.job(folder / "file"))
    else:
        quantizer.quantize(source, digits.job(folder / "file"))
        inputs["unquantized"] = source
    return Case(digits, {**inputs, "file": digits.artifact(folder / "file", "onnx")})


@pytest.fixture
def case(digits: Digits, tmp_path: Path, request: pytest.FixtureRequest) -> Case:
    """A fresh copy, to be broken."""
    return build(digits, *request.param, tmp_path)


def on(*schemes: str, family: str = "resnet") -> Any:
    return pytest.mark.parametrize(
        "case",
        [(family, scheme) for scheme in schemes],
        indirect=True,
        ids=[f"{family}-{scheme}" for scheme in schemes],
    )


def failed(facts: Mapping[str, Any]) -> set[str]:
    """Names of what failed; the overall verdict must agree."""
    names = {check["name"] for check in facts["checks"] if check["passed"] is False}
    if facts["parity"]["passed"] is False:
        names.add("parity")
    assert facts["passed"] is (not names)
    assert (facts["reason"] is None) is facts["passed"]
    return names


# -- what is right


@pytest.mark.parametrize(("family", "scheme"), MATRIX)
def test_clean_files_pass(digits: Digits, tmp_path: Path, family: str, scheme: str) -> None:
    facts = build(digits, family, scheme, tmp_path).verify()
    assert facts["passed"], facts["reason"]
    assert facts["parity"]["passed"] is True
    assert all(check["passed"] is True for check in facts["checks"])
    assert (facts["fidelity"] is None) is (scheme == "float")


@pytest.mark.parametrize("scheme", ["x86", "int4"])
def test_fidelity_is_measured_on_the_file_as_it_runs(digits: Digits, tmp_path: Path, scheme: str) -> None:
    case = build(digits, "resnet", scheme, tmp_path)
    fidelity = case.verify()["fidelity"]
    size = digits.data.size("validation")
    batch = digits.data.batch("validation", range(size))
    with torch.no_grad():
        expected = loading.load(digits.torch("resnet").path)(batch["pixel_values"]).logits.argmax(1).numpy()
    session = onnxruntime.InferenceSession(case.inputs["file"].path / "model.onnx")
    found = session.run(None, {"pixel_values": batch["pixel_values"].numpy()})[0].argmax(1)
    labels = batch["labels"].numpy()
    assert fidelity["agreement"] == pytest.approx(float((found == expected).mean()), abs=1 / size)
    assert fidelity["metric"] == "accuracy"
    drop = float((expected == labels).mean() - (found == labels).mean())
    assert fidelity["metric_drop"] == pytest.approx(drop, abs=1 / size)
    assert fidelity["samples"] == size


def test_the_tolerance_of_a_float_file_is_that_of_float32(digits: Digits, tmp_path: Path) -> None:
    parity = build(digits, "resnet", "float", tmp_path).verify()["parity"]
    model = loading.load(digits.torch("resnet").path)
    images = digits.data.batch("validation", range(64))["pixel_values"]
    largest = float(model(images).logits.abs().max())
    assert 0 < parity["max_abs_error"] <= parity["tolerance"] < 1e-4 * largest


# -- files that cannot be used


@on("float", "x86")
@pytest.mark.parametrize("left", [0.0, 0.5, 0.99])
def test_a_truncated_file(case: Case, left: float) -> None:
    path = case.inputs["file"].path / "model.onnx"
    content = path.read_bytes()
    path.write_bytes(content[: int(left * len(content))])
    facts = case.verify()
    assert failed(facts) & {"opens", "valid ONNX"}
    assert facts["parity"]["passed"] is None


@on("float")
def test_a_file_with_an_operator_nobody_knows(case: Case) -> None:
    with case.edit() as edit:
        edit.of("Relu")[0].op_type = "NoSuchOperator"
    assert failed(case.verify()) == {"opens"}


@on("float")
def test_outputs_that_are_not_finite(case: Case) -> None:
    with case.edit() as edit:
        name = edit.of("Gemm")[0].input[2]
        edit.set(name, np.where(np.arange(10) == 3, np.nan, edit.get(name)).astype(np.float32))
    assert failed(case.verify()) == {"finite outputs", "any batch size"}


@on("float")
def test_an_output_of_another_width(case: Case) -> None:
    with case.edit() as edit:
        node = edit.of("Gemm")[0]
        for name in node.input[1:]:
            edit.set(name, edit.get(name)[:9])
        edit.model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 9
    assert failed(case.verify()) == {"inputs and outputs", "runs"}


# -- what the file says of itself


def swap_labels(edit: Edit) -> None:
    entry = next(item for item in edit.model.metadata_props if item.key == "labels")
    entry.value = json.dumps([*json.loads(entry.value)[1:], "0"])


def other_mean(edit: Edit) -> None:
    entry = next(item for item in edit.model.metadata_props if item.key == "preprocessing")
    entry.value = entry.value.replace("0.5", "0.485", 1)


def other_input(edit: Edit) -> None:
    for node in edit.nodes:
        node.input[:] = ["image" if name == "pixel_values" else name for name in node.input]
    edit.model.graph.input[0].name = "image"


def fixed_batch(edit: Edit) -> None:
    for value in (*edit.model.graph.input, *edit.model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


def build_path(edit: Edit) -> None:
    edit.nodes[0].doc_string = "/usr/lib/python3/site-packages/torch/nn/module.py"


@on("float", "x86")
@pytest.mark.parametrize(
    ("damage", "caught"),
    [
        (swap_labels, {"metadata"}),
        (other_mean, {"metadata"}),
        (other_input, {"inputs and outputs", "any batch size", "runs"}),
        (fixed_batch, {"any batch size", "runs"}),
        (build_path, {"no build paths"}),
    ],
)
def test_a_file_that_says_the_wrong_thing(case: Case, damage: Callable[[Edit], None], caught: set[str]) -> None:
    with case.edit() as edit:
        damage(edit)
    assert failed(case.verify()) == caught


@on("float")
@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("config.json", "id2label", {str(index): str((index + 1) % 10) for index in range(10)}),
        ("preprocessor_config.json", "image_std", [0.25]),
        ("preprocessor_config.json", "size", {"height": 16, "width": 16}),
    ],
)
def test_companions_that_say_the_wrong_thing(case: Case, name: str, key: str, value: Any) -> None:
    path = case.inputs["file"].path / name
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert failed(case.verify()) == {"companion files"}
    path.unlink()
    assert failed(case.verify()) == {"companion files"}


# -- what the file computes


def transposed_kernel(edit: Edit) -> None:
    name = edit.of("Conv")[5].input[1]
    edit.set(name, edit.get(name).swapaxes(2, 3))


def flipped_block(edit: Edit) -> None:
    name = edit.of("Conv")[3].input[1]
    weight = edit.get(name)
    weight[:8] = weight[:8][::-1]
    edit.set(name, weight)


def dropped_bias(edit: Edit) -> None:
    del edit.of("Conv")[4].input[2:]


def one_wrong_weight(edit: Edit) -> None:
    name = edit.of("Gemm")[0].input[1]
    weight = edit.get(name)
    weight[0, 0] *= 1.01
    edit.set(name, weight)


def missing_relu(edit: Edit) -> None:
    edit.of("Relu")[2].op_type = "Identity"


def stale_statistics(edit: Edit) -> None:
    """Normalises by the statistics of the batch: batch normalization that was left in training mode."""
    conv = edit.of("Conv")[1]
    inner = f"{conv.output[0]}_raw"
    size = edit.get(conv.input[1]).shape[0]
    numbers = []
    for index, fill in enumerate((1, 0, 0, 1)):
        edit.model.graph.initializer.append(numpy_helper.from_array(np.full(size, fill, np.float32), f"bn{index}"))
        numbers.append(f"bn{index}")
    norm = helper.make_node(
        "BatchNormalization", [inner, *numbers], [conv.output[0], "mean", "variance"], training_mode=1
    )
    conv.output[0] = inner
    edit.nodes.insert(list(edit.nodes).index(conv) + 1, norm)


@on("float")
@pytest.mark.parametrize(
    "damage", [transposed_kernel, flipped_block, dropped_bias, one_wrong_weight, missing_relu, stale_statistics]
)
def test_a_float_file_that_computes_something_else(case: Case, damage: Callable[[Edit], None]) -> None:
    with case.edit() as edit:
        damage(edit)
    assert "parity" in failed(case.verify())


# -- quantized files


def values(edit: Edit) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """(QuantizeLinear, DequantizeLinear) of each value inside the network."""
    readers = {node.input[0]: node for node in edit.of("DequantizeLinear")}
    for node in edit.of("QuantizeLinear")[1:]:
        yield node, readers[node.output[0]]


def swapped_scales(edit: Edit) -> None:
    (first, _), (second, _) = list(values(edit))[2:4]
    one, two = edit.get(first.input[1]), edit.get(second.input[1])
    edit.set(first.input[1], two)
    edit.set(second.input[1], one)


def scale_of_one_side(edit: Edit) -> None:
    quantize, dequantize = next(values(edit))
    edit.model.graph.initializer.append(numpy_helper.from_array(edit.get(quantize.input[1]) * 2, "twice"))
    dequantize.input[1] = "twice"


def shifted_zero_point(edit: Edit) -> None:
    """Of a value that is signed and never saturates: nothing shows in the outputs, but the range is another."""
    for quantize, _ in values(edit):
        zero_point = edit.get(quantize.input[2])
        if zero_point not in (0, -128):
            edit.set(quantize.input[2], zero_point + np.asarray(1, zero_point.dtype))
            return


def shifted_zero_point_of_a_relu(edit: Edit) -> None:
    quantize, _ = next(values(edit))
    zero_point = edit.get(quantize.input[2])
    assert zero_point in (0, -128)
    edit.set(quantize.input[2], zero_point + np.asarray(1, zero_point.dtype))


def flipped_integers(edit: Edit) -> None:
    name = edit.decoders(np.int8, 4)[4].input[0]
    weight = edit.get(name)
    weight[:8] = weight[:8][::-1]
    edit.set(name, weight)


def transposed_integers(edit: Edit) -> None:
    name = edit.decoders(np.int8, 4)[6].input[0]
    edit.set(name, edit.get(name).swapaxes(2, 3))


def one_wrong_channel_scale(edit: Edit) -> None:
    name = edit.decoders(np.int8, 4)[3].input[1]
    scale = edit.get(name)
    scale[5] *= 1.1
    edit.set(name, scale)


def dropped_quantized_bias(edit: Edit) -> None:
    del edit.of("Conv")[4].input[2:]


def wrong_quantized_bias(edit: Edit) -> None:
    name = edit.of("Gemm")[0].input[2]
    decoder = next(node for node in edit.nodes if name in node.output)
    edit.set(decoder.input[0], edit.get(decoder.input[0])[::-1])


def folded_stem_out_of_order(edit: Edit) -> None:
    """SpaceToDepth orders squares by row, column, channel; another order is an easy mistake."""
    name = next(node for node in edit.decoders(np.int8, 4) if edit.get(node.input[0]).shape[1] == 4).input[0]
    edit.set(name, edit.get(name)[:, [0, 2, 1, 3]])


MEANING = "file means what the quantizer chose"


@on("x86", "arm")
@pytest.mark.parametrize(
    ("damage", "caught"),
    [
        (swapped_scales, MEANING),
        (scale_of_one_side, "quantized values"),
        (scale_of_one_side, MEANING),
        (shifted_zero_point, "quantized values"),
        (shifted_zero_point_of_a_relu, "quantized values"),
        (flipped_integers, MEANING),
        (transposed_integers, MEANING),
        (one_wrong_channel_scale, MEANING),
        (dropped_quantized_bias, MEANING),
        (wrong_quantized_bias, MEANING),
        (folded_stem_out_of_order, MEANING),
    ],
)
def test_a_quantized_file_with_wrong_numbers(case: Case, damage: Callable[[Edit], None], caught: str) -> None:
    with case.edit() as edit:
        damage(edit)
    assert caught in failed(case.verify())


@on("x86")
@pytest.mark.parametrize("damage", [flipped_integers, dropped_quantized_bias, folded_stem_out_of_order])
def test_the_runtime_sees_gross_damage_too(case: Case, damage: Callable[[Edit], None]) -> None:
    with case.edit() as edit:
        damage(edit)
    assert "parity" in failed(case.verify())


@on("dynamic", family="vit")
def test_dynamic_files_with_wrong_numbers(case: Case) -> None:
    with case.edit() as edit:
        name = edit.of("MatMulInteger")[3].input[1]
        edit.set(name, edit.get(name)[::-1])
    assert MEANING in failed(case.verify())


@on("int4")
def test_weights_that_are_not_the_quantizers(case: Case) -> None:
    with case.edit() as edit:
        node = edit.of("MatMulNBits")[0]
        packed = edit.get(node.input[1])
        edit.set(node.input[1], (packed << 4) | (packed >> 4))  # the halves of each byte the wrong way round
    assert failed(case.verify()) == {"parity", "file means the quantized model", "weights are the model's"}


@on("x86")
def test_a_float_parent_that_is_wrong_itself(case: Case, tmp_path: Path) -> None:
    """The quantized file follows its parent to the last bit, and both are wrong."""
    shutil.copytree(case.inputs["unquantized"].path, tmp_path / "parent")
    with Edit(tmp_path / "parent" / "model.onnx") as edit:
        dropped_bias(edit)
    parent = case.digits.artifact(tmp_path / "parent", "onnx")
    shutil.rmtree(case.inputs["file"].path)
    Int8Static(layout="x86").quantize(parent, case.digits.job(case.inputs["file"].path))
    case.inputs["unquantized"] = parent
    assert failed(case.verify()) == {"float file equals torch", "weights are the model's"}


@on("x86")
def test_an_operator_the_evaluator_does_not_know_is_reported(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeforge.verification import _operators

    known = {name: meaning for name, meaning in _operators.OPERATORS.items() if name != "MaxPool"}
    monkeypatch.setattr(_operators, "OPERATORS", known)
    facts = case.verify()
    assert facts["passed"]
    assert facts["parity"]["passed"] is None
    assert "MaxPool" in facts["parity"]["why"]
    assert [check["name"] for check in facts["checks"] if check["passed"] is None] == ["float file equals torch"]


# -- what verification modules share


def test_modules_by_format() -> None:
    assert verification_of("onnx") is verification
    assert verification_of("no_such_format") is None
    assert verification_of("_evaluator") is None


def test_differences_of_logits() -> None:
    reference = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    found = differences(np.array([[2.0, 0.0], [1.0, 0.5], [3.0, 0.0]]), reference)
    assert found["max_abs_error"] == 1.5
    assert found["agreement"] == pytest.approx(2 / 3)
    assert found["cosine"] == pytest.approx((1 + 0.5 / 1.25**0.5 + 1) / 3)
    broken = differences(np.array([[np.nan, 0.0], [0.0, 2.0], [3.0, 0.0]]), reference)
    assert (broken["max_abs_error"], broken["cosine"]) == (None, None)
    assert broken["agreement"] == pytest.approx(2 / 3)


def test_an_outcome_passes_where_nothing_failed() -> None:
    from edgeforge.verification import Check, Parity

    unknown = Parity("torch", None, "cannot run here")
    assert outcome(unknown, [Check("a", True), Check("b", None, "not here")])["passed"]
    bad = outcome(replace(unknown, passed=False, why="off by 1"), [Check("a", True)])
    assert (bad["passed"], bad["reason"]) == (False, "parity with torch: off by 1")
    assert outcome(unknown, [Check("a", False, "gone")])["reason"] == "a: gone"
