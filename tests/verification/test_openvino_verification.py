"""OpenVINO files that are right pass, and no broken one does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from edgeforge import openvino_graph
from edgeforge.core.artifact import Artifact
from edgeforge.exporters.openvino import Openvino
from edgeforge.models import loading
from edgeforge.quantizers import Quantizer
from edgeforge.quantizers.int4_weights import Int4Weights
from edgeforge.quantizers.int8_openvino import Int8Openvino
from edgeforge.quantizers.int8_weights import Int8Weights
from edgeforge.verification import openvino as verification
from edgeforge.verification import verification_of
from edgeforge.verification.openvino import verify

if TYPE_CHECKING:
    Data = Any

SCHEMES: dict[str, tuple[Openvino, Quantizer | None]] = {
    "float": (Openvino(), None),
    "half": (Openvino(precision="float16"), None),
    "int8": (Openvino(), Int8Openvino(samples=60)),
    "fast": (Openvino(), Int8Openvino(samples=60, preset="performance", bias_correction="fast")),
    "int8_of_half": (Openvino(precision="float16"), Int8Openvino(samples=60)),
    "weights8": (Openvino(), Int8Weights(min_elements=64)),
    "weights4": (Openvino(), Int4Weights(min_elements=64)),
}
TEXT = ("bert", "distilbert", "electra", "roberta")
FAST = {
    ("resnet", "float"),
    ("resnet", "half"),
    ("resnet", "int8"),
    ("vit", "int8"),
    ("vit", "weights4"),
    ("bert", "int8"),
}
MATRIX = [
    pytest.param(family, scheme, marks=() if (family, scheme) in FAST else pytest.mark.slow)
    for family in ("resnet", "mobilenet_v2", "vit", "convnext", *TEXT)
    for scheme in SCHEMES
]

Build = Callable[[str, str], "Case"]


@dataclass
class Case:
    """A written file and the artifacts it came from."""

    data: Data
    inputs: dict[str, Artifact]

    @property
    def folder(self) -> Path:
        return self.inputs["file"].path

    def verify(self) -> Mapping[str, Any]:
        inputs = {**self.inputs, "file": self.data.artifact(self.folder, "openvino")}
        facts = verify(inputs, self.data.job(self.folder.parent / "verify"))
        assert json.loads(json.dumps(facts, allow_nan=False)) == facts
        return facts

    def copy(self, folder: Path) -> Case:
        shutil.copytree(self.folder, folder)
        return Case(self.data, {**self.inputs, "file": self.data.artifact(folder, "openvino")})

    def edit(self) -> Edit:
        return Edit(self.folder)


class Edit:
    """Change a file's graph; written back, under the same names, on leaving the block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.graph = openvino_graph.load(folder)
        self.layers = openvino_graph.layers(self.graph)

    def __enter__(self) -> Edit:
        return self

    def __exit__(self, *_: object) -> None:
        content = folder_of(self.graph)
        for name, data in content.items():
            (self.folder / name).write_bytes(data)

    def of(self, kind: str) -> list[Any]:
        return [node for node in self.graph.get_ordered_ops() if node.get_type_name() == kind]

    def constant(self, node: Any, port: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Replace the stored constant behind a port."""
        while node.input_value(port).get_node().get_type_name() != "Constant":
            node, port = node.input_value(port).get_node(), 0
        before = node.input_value(port).get_node()
        after = openvino_graph.load_openvino().op.Constant(np.asarray(change(before.data.copy())))
        after.set_friendly_name(before.get_friendly_name())
        node.input(port).replace_source_output(after.output(0))

    def scales(self, layer: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        node = self.layers[layer].weight.get_node()
        while node.get_type_name() != "Multiply":
            node = node.input_value(0).get_node()
        self.constant(node, 1, change)


def folder_of(graph: Any) -> dict[str, bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / openvino_graph.MODEL
        openvino_graph.load_openvino().save_model(graph, path, compress_to_fp16=False)
        return {part.name: part.read_bytes() for part in Path(name).iterdir()}


@pytest.fixture(scope="module")
def build(digits: Data, mails: Data, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """(family, scheme) -> a sound file, made once: copy it before breaking it."""
    made: dict[tuple[str, str], Case] = {}

    def make(family: str, scheme: str) -> Case:
        if (family, scheme) not in made:
            data = mails if family in TEXT else digits
            made[family, scheme] = written(data, family, scheme, tmp_path_factory.mktemp(f"{family}-{scheme}"))
        return made[family, scheme]

    return make


def written(data: Data, family: str, scheme: str, folder: Path) -> Case:
    exporter, quantizer = SCHEMES[scheme]
    model = data.torch(family)
    inputs = {"model": model, "reference": model}
    if quantizer is not None and "torch" in quantizer.accepts:
        quantizer.quantize(model, data.job(folder / "reference"))
        inputs["reference"] = data.artifact(folder / "reference", "torch")
    exporter.export(inputs["reference"], data.job(folder / "file"))
    inputs["file"] = data.artifact(folder / "file", "openvino")
    if quantizer is not None and "openvino" in quantizer.accepts:
        inputs["unquantized"] = inputs["file"]
        quantizer.quantize(inputs["file"], data.job(folder / "int8"))
        inputs["file"] = data.artifact(folder / "int8", "openvino")
    return Case(data, inputs)


def failed(facts: Mapping[str, Any]) -> set[str]:
    """Names of what failed; the overall verdict must agree."""
    names = {check["name"] for check in facts["checks"] if check["passed"] is False}
    if facts["parity"]["passed"] is False:
        names.add("parity")
    assert facts["passed"] is (not names)
    assert (facts["reason"] is None) is facts["passed"]
    return names


# -- what is right


def test_the_format_finds_its_verification() -> None:
    assert verification_of("openvino") is verification


@pytest.mark.parametrize(("family", "scheme"), MATRIX)
def test_clean_files_pass(build: Build, family: str, scheme: str) -> None:
    facts = build(family, scheme).verify()
    assert facts["passed"], facts["reason"]
    assert facts["parity"]["passed"] is True
    assert all(check["passed"] is True for check in facts["checks"])
    assert (facts["fidelity"] is None) is (scheme in ("float", "half"))


def test_tolerances_follow_from_the_arithmetic(digits: Data, build: Build) -> None:
    images = digits.data.batch("validation", range(64))["pixel_values"]
    largest = float(loading.load(digits.torch("resnet").path)(images).logits.abs().max())
    for scheme, most in (("float", 1e-4), ("half", 1e-2)):
        parity = build("resnet", scheme).verify()["parity"]
        assert 0 < parity["max_abs_error"] <= parity["tolerance"] < most * largest


# -- files that cannot be used


@pytest.mark.parametrize("scheme", ["float", "int8"])
@pytest.mark.parametrize("name", [openvino_graph.MODEL, openvino_graph.WEIGHTS])
@pytest.mark.parametrize("left", [0.0, 0.5, 0.99])
def test_a_truncated_file(build: Build, tmp_path: Path, scheme: str, name: str, left: float) -> None:
    case = build("resnet", scheme).copy(tmp_path / "file")
    content = (case.folder / name).read_bytes()
    (case.folder / name).write_bytes(content[: int(left * len(content))])
    facts = case.verify()
    assert failed(facts) == {"opens"}
    assert facts["parity"]["passed"] is None


def test_a_missing_file(build: Build, tmp_path: Path) -> None:
    case = build("resnet", "float").copy(tmp_path / "file")
    (case.folder / openvino_graph.WEIGHTS).unlink()
    assert failed(case.verify()) == {"opens"}


# -- what the file says of itself


def test_a_fixed_batch(build: Build, tmp_path: Path) -> None:
    case = build("resnet", "float").copy(tmp_path / "file")
    with case.edit() as edit:
        edit.graph.reshape([64, 1, 8, 8])
    assert {"inputs and outputs", "any batch size"} <= failed(case.verify())


def test_another_output_name(build: Build, tmp_path: Path) -> None:
    case = build("resnet", "float").copy(tmp_path / "file")
    with case.edit() as edit:
        edit.graph.outputs[0].get_tensor().set_names({"scores"})
    assert failed(case.verify()) == {"inputs and outputs"}


def test_metadata_that_name_another_order_of_labels(build: Build, tmp_path: Path) -> None:
    case = build("resnet", "float").copy(tmp_path / "file")
    with case.edit() as edit:
        edit.graph.set_rt_info(json.dumps(list(case.data.data.interface.labels)[::-1]), ["edgeforge", "labels"])
    assert failed(case.verify()) == {"metadata"}


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_companions_that_are_gone_or_say_something_else(build: Build, tmp_path: Path, name: str) -> None:
    case = build("resnet", "float").copy(tmp_path / "file")
    content = json.loads((case.folder / name).read_text())
    content["id2label" if name == "config.json" else "image_mean"] = None
    (case.folder / name).write_text(json.dumps(content))
    assert failed(case.verify()) == {"companion files"}
    (case.folder / name).unlink()
    assert failed(case.verify()) == {"companion files"}


def test_a_path_of_this_machine(build: Build, tmp_path: Path) -> None:
    case = build("resnet", "float").copy(tmp_path / "file")
    with case.edit() as edit:
        edit.graph.set_rt_info(str(Path.home() / "models"), ["source"])
    assert failed(case.verify()) == {"no build paths"}


@pytest.mark.slow
def test_the_tokenizer_of_another_model(build: Build, tmp_path: Path) -> None:
    case = build("bert", "float").copy(tmp_path / "file")
    path = case.folder / "tokenizer.json"
    path.write_text(path.read_text().replace("winner", "loser"))
    assert failed(case.verify()) == {"tokenizer"}


# -- numbers


@pytest.mark.parametrize("layer", ["resnet.embedder.embedder.convolution", "classifier.1"])
def test_a_float_weight_that_is_a_little_off(build: Build, tmp_path: Path, layer: str) -> None:
    case = build("resnet", "float").copy(tmp_path / "file")
    with case.edit() as edit:
        edit.constant(edit.layers[layer].node, 1, lambda weight: weight * np.float32(1.001))
    assert failed(case.verify()) == {"parity", "weights are the model's"}


def test_a_torch_model_that_is_broken_itself(digits: Data, build: Build, tmp_path: Path) -> None:
    """OpenVINO's ReLU makes zero of NaN."""
    model = loading.load(digits.torch("resnet").path)
    with torch.no_grad():
        model.get_parameter("resnet.encoder.stages.0.layers.0.layer.0.convolution.weight").fill_(torch.nan)
    loading.save(model, tmp_path / "torch")
    broken = digits.artifact(tmp_path / "torch", "torch")
    case = build("resnet", "float")
    assert "finite reference" in failed(Case(digits, {**case.inputs, "model": broken, "reference": broken}).verify())


def one_more(numbers: np.ndarray) -> np.ndarray:
    """The first integer, one step further."""
    flat = numbers.reshape(-1).copy()
    flat[0] += 1 if flat[0] < 127 else -1
    result: np.ndarray = flat.reshape(numbers.shape)
    return result


def swapped(numbers: np.ndarray) -> np.ndarray:
    """The least and the greatest number in each other's place."""
    flat = numbers.reshape(-1).copy()
    low, high = int(flat.argmin()), int(flat.argmax())
    flat[[low, high]] = flat[[high, low]]
    result: np.ndarray = flat.reshape(numbers.shape)
    return result


QUERY = "vit.encoder.layer.0.attention.attention.query"
LAST = "classifier.1"


def swap_inputs(one: Any, other: Any, *, ports: tuple[int, ...]) -> None:
    for port in ports:
        first, second = one.input_value(port), other.input_value(port)
        one.input(port).replace_source_output(second)
        other.input(port).replace_source_output(first)


def coarse(edit: Edit) -> None:
    edit.scales(LAST, lambda scales: scales * np.float32(4))
    edit.constant(edit.layers[LAST].node, 1, lambda numbers: np.rint(numbers / 4).astype(np.int8))


def smoothing(edit: Edit) -> None:
    multiply = edit.layers[QUERY].node.input_value(0).get_node().input_value(0).get_node()
    edit.constant(multiply, 1, swapped)


def zero_point(edit: Edit) -> None:
    for port in (1, 2, 3, 4):
        edit.constant(edit.of("FakeQuantize")[3], port, lambda end: end + np.float32(0.02))


def bias(edit: Edit) -> None:
    place = openvino_graph.bias_of(edit.layers[LAST])
    assert place is not None
    edit.constant(*place, lambda numbers: numbers + np.float32(0.01))


def normalisation(edit: Edit) -> None:
    (reader,) = edit.of("MVN")[2].output(0).get_target_inputs()
    edit.constant(reader.get_node(), 1, lambda numbers: numbers * np.float32(1.5))


def residual(edit: Edit) -> None:
    sums = [node for node in edit.of("Add") if not any(map(openvino_graph.is_constant, node.input_values()))]
    sums[1].input(1).replace_source_output(edit.of("FakeQuantize")[2].output(0))


INTEGERS = "integers are the float weights"
FAULTS: dict[str, tuple[str, Callable[[Edit], None], str]] = {
    "an integer off by one": ("resnet", lambda edit: edit.constant(edit.layers[LAST].node, 1, one_more), INTEGERS),
    "an integer behind smoothing": ("vit", lambda edit: edit.constant(edit.layers[QUERY].node, 1, one_more), INTEGERS),
    "two scales swapped": ("resnet", lambda edit: edit.scales(LAST, swapped), INTEGERS),
    "scales four times too large, integers to match": ("resnet", coarse, INTEGERS),
    "two factors of smoothing swapped": ("vit", smoothing, INTEGERS),
    "query and key swapped": (
        "vit",
        lambda edit: swap_inputs(edit.layers[QUERY].node, edit.layers[QUERY.replace("query", "key")].node, ports=(1,)),
        INTEGERS,
    ),
    "a zero point off by one": ("resnet", zero_point, "quantized values"),
    "a value decoded with another range": (
        "resnet",
        lambda edit: edit.constant(edit.of("FakeQuantize")[3], 4, lambda end: end * np.float32(1.01)),
        "quantized values",
    ),
    "the ranges of two values swapped": (
        "resnet",
        lambda edit: swap_inputs(*edit.of("FakeQuantize")[1:3], ports=(1, 2, 3, 4)),
        "quantized values",
    ),
    "a bias off": ("resnet", bias, "biases"),
    "a normalisation off": ("vit", normalisation, "connections"),
    "a residual connection from elsewhere": ("resnet", residual, "connections"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_quantized_file(build: Build, tmp_path: Path, fault: str) -> None:
    family, breaking, check = FAULTS[fault]
    case = build(family, "int8").copy(tmp_path / "file")
    with case.edit() as edit:
        breaking(edit)
    assert check in failed(case.verify())


def test_an_edit_that_changes_nothing_passes(build: Build, tmp_path: Path) -> None:
    """What the faults above are told from."""
    case = build("vit", "int8").copy(tmp_path / "file")
    with case.edit() as edit:
        edit.constant(edit.layers[QUERY].node, 1, lambda numbers: numbers)
    assert failed(case.verify()) == set()


def test_a_layer_that_went_missing_or_came_from_another_file(build: Build, tmp_path: Path) -> None:
    case = build("resnet", "int8").copy(tmp_path / "file")
    with case.edit() as edit:
        edit.layers["classifier.1"].node.set_friendly_name("classifier")
    assert failed(case.verify()) & {"layers", "quantization"}


@pytest.mark.parametrize("content", [None, "{", "{}", '{"values": [], "biases": {}}'])
def test_a_record_that_is_gone_or_damaged(build: Build, tmp_path: Path, content: str | None) -> None:
    case = build("resnet", "int8").copy(tmp_path / "file")
    (case.folder / "quantization.json").unlink()
    if content is not None:
        (case.folder / "quantization.json").write_text(content)
    assert "quantization" in failed(case.verify())


def test_an_integer_of_weights_alone_off_by_one(build: Build, tmp_path: Path) -> None:
    case = build("vit", "weights4").copy(tmp_path / "file")
    layer = "vit.encoder.layer.0.intermediate.dense"
    with case.edit() as edit:
        edit.scales(layer, lambda scales: scales * np.float32(1.01))
    assert failed(case.verify()) == {"parity", "weights are the model's"}


def test_the_float_file_behind_it_is_checked_too(build: Build, tmp_path: Path) -> None:
    case = build("resnet", "int8")
    float_file = Case(case.data, {"file": case.inputs["unquantized"]}).copy(tmp_path / "float")
    with float_file.edit() as edit:
        edit.constant(edit.layers["classifier.1"].node, 1, lambda weight: weight * np.float32(1.1))
    inputs = {**case.inputs, "unquantized": case.data.artifact(float_file.folder, "openvino")}
    assert "float file equals torch" in failed(Case(case.data, inputs).verify())
