"""Core ML packages of text classifiers that are right pass, and no broken one does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeforge.core.artifact import Artifact, hash_folder
from edgeforge.exporters.coreml import Coreml
from edgeforge.models import loading, quantized_weights, tokenizer
from edgeforge.models.quantized_weights import QuantizedWeight, QuantizedWeights
from edgeforge.quantizers._weights import linear, palettize
from edgeforge.quantizers.int4_weights import Int4Weights
from edgeforge.runtimes import coreml as runtime
from edgeforge.verification._coreml_package import open_package
from edgeforge.verification.coreml import verify

pytest.importorskip("coremltools")

FAMILIES = ("bert", "distilbert", "roberta", "electra")
TABLES: dict[str, Callable[[np.ndarray], QuantizedWeight]] = {
    "int4 tables": lambda weight: linear(weight, 4, 8),
    "int8 tables": lambda weight: linear(weight, 8, None),
    "palettes": lambda weight: palettize(weight, 4, 2),
}
"""Of every weight of two axes, positions and token types among them."""
LONGEST = 20
"""Tokens of a text: more than the shortest length of a flexible package, fewer than the tables have positions."""


@dataclass(frozen=True)
class Case:
    """A written package, what it was made of, and the task's `max_length`."""

    mails: Any
    reference: Path
    file: Path
    longest: int = LONGEST

    @property
    def package(self) -> Path:
        return self.file / runtime.PACKAGE

    def verify(self) -> dict[str, Any]:
        reference = artifact(self.reference)
        inputs = {"file": self.mails.artifact(self.file, "coreml"), "reference": reference, "model": reference}
        return dict(verify(inputs, job(self.mails, self.file.parent / "verify", self.longest)))


def artifact(folder: Path) -> Artifact:
    return Artifact("0" * 64, "", "torch", folder, "", {}, {}, {})


def job(mails: Any, folder: Path, longest: int) -> Any:
    return replace(mails.job(folder), task=mails.task.model_copy(update={"max_length": longest}))


def model_of(mails: Any, family: str, folder: Path) -> None:
    """A tiny classifier of mails with 30 positions, its norms and biases not all alike."""
    import transformers

    made = mails.torch(family)
    config = loading.load(made.path).config
    config.max_position_embeddings = 30
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                torch.nn.init.normal_(parameter, mean=float(parameter.mean()), std=0.1)
    loading.save(model.eval(), folder, tokenizer_from=made.path)


def quantize(folder: Path, choose: Callable[[np.ndarray], QuantizedWeight]) -> None:
    model = loading.load(folder)
    weights = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            weights[name] = choose(parameter.detach().numpy())
            parameter.data = torch.from_numpy(weights[name].dequantize())
    loading.save(model, folder)
    quantized_weights.write(QuantizedWeights(weights), folder)


def make(mails: Any, family: str, scheme: str, folder: Path, **options: Any) -> Case:
    reference = folder / "model"
    model_of(mails, family, reference)
    if scheme in TABLES:
        quantize(reference, TABLES[scheme])
    elif scheme == "int4":
        quantizer = Int4Weights(min_elements=64, block_size=8)
        quantizer.quantize(artifact(reference), job(mails, folder / "quantized", LONGEST))
        reference = folder / "quantized"
    Coreml.model_validate(options).export(artifact(reference), job(mails, folder / "file", LONGEST))
    return Case(mails, reference, folder / "file")


_CASES: dict[str, Case] = {}


@pytest.fixture
def case(mails: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    """Family, scheme and length -> a fresh copy of its package (written once for all tests)."""

    def copy(family: str = "bert", scheme: str = "float", length: str = "fixed") -> Case:
        name = f"{family}-{scheme}-{length}".replace(" ", "-")
        if name not in _CASES:
            _CASES[name] = make(mails, family, scheme, tmp_path_factory.mktemp(name), length=length)
        original = _CASES[name]
        shutil.copytree(original.file, tmp_path / name)
        return replace(original, file=tmp_path / name)

    return copy


def failed(outcome: dict[str, Any]) -> list[str]:
    return [check["name"] for check in outcome["checks"] if not check["passed"]]


def assert_passes(clean: Case) -> None:
    before = hash_folder(clean.file)
    outcome = clean.verify()
    assert outcome["passed"], outcome["reason"]
    assert outcome["parity"]["passed"] is True
    assert 0 <= outcome["parity"]["max_abs_error"] <= outcome["parity"]["tolerance"]
    assert json.loads(json.dumps(outcome)) == outcome
    assert hash_folder(clean.file) == before


FAST = [("bert", "float", "fixed"), ("bert", "int4 tables", "fixed"), ("roberta", "int4", "flexible")]
SLOW = [
    (family, scheme, length)
    for family in FAMILIES
    for scheme, length in [
        ("float", "fixed"),
        ("float", "flexible"),
        ("int4", "fixed"),
        ("int8 tables", "flexible"),
        ("palettes", "fixed"),
    ]
    if (family, scheme, length) not in FAST
]


@pytest.mark.parametrize(
    ("family", "scheme", "length"), [*FAST, *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW)]
)
def test_a_clean_package_passes(family: str, scheme: str, length: str, case: Callable[..., Case]) -> None:
    assert_passes(case(family, scheme, length))


# -- damaged weights


def spec_of(package: Path) -> Any:
    return runtime.load_coremltools().utils.load_spec(str(package / runtime.MODEL_FILE))


def edit_spec(package: Path, edit: Callable[[Any], None]) -> None:
    spec = spec_of(package)
    edit(spec)
    (package / runtime.MODEL_FILE).write_bytes(spec.SerializeToString())


def operations_of(spec: Any) -> Any:
    main = spec.mlProgram.functions["main"]
    return main.block_specializations[main.opset].operations


def change_bytes(package: Path, old: bytes, new: bytes) -> None:
    """Replace the one place in the weights where `old` stands."""
    path = package / runtime.WEIGHTS_FILE
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


def table(case: Case, name: str) -> np.ndarray:
    model = loading.load(case.reference)
    numbers: np.ndarray = model.get_parameter(f"bert.embeddings.{name}_embeddings.weight").detach().numpy()
    return numbers.astype(np.float16)


@pytest.mark.parametrize(("name", "row"), [("word", 77), ("position", 11), ("token_type", 0)])
def test_a_changed_row_of_a_table_is_found(name: str, row: int, case: Callable[..., Case]) -> None:
    broken = case()
    numbers = table(broken, name)[row]
    change_bytes(broken.package, numbers.tobytes(), (numbers * np.float16(1.01)).tobytes())
    outcome = broken.verify()
    assert failed(outcome) == ["other weights"]
    assert f"{name}_embeddings.weight" in outcome["reason"]
    assert "numbers differ" in outcome["reason"]


def test_two_swapped_positions_are_found(case: Callable[..., Case]) -> None:
    broken = case()
    rows = table(broken, "position")
    change_bytes(broken.package, rows[4:6].tobytes(), rows[5:6].tobytes() + rows[4:5].tobytes())
    outcome = broken.verify()
    assert failed(outcome) == ["other weights"]
    assert "the first 20 rows of bert.embeddings.position_embeddings.weight" in outcome["reason"]


def test_the_other_token_type_is_found(case: Callable[..., Case]) -> None:
    broken = case()
    rows = table(broken, "token_type")
    change_bytes(broken.package, rows[0].tobytes(), rows[1].tobytes())
    outcome = broken.verify()
    assert failed(outcome) == ["other weights"]
    assert "the first 1 rows of bert.embeddings.token_type_embeddings.weight" in outcome["reason"]


def test_positions_that_begin_elsewhere_are_found(case: Callable[..., Case]) -> None:
    broken = case()
    rows = table(broken, "position")
    change_bytes(broken.package, rows[:LONGEST].tobytes(), rows[1 : LONGEST + 1].tobytes())
    assert failed(broken.verify()) == ["other weights"]


def flip(package: Path, operation: int, argument: str, bits: int) -> None:
    """Change the first byte behind an argument of a compressed table."""
    found = [one for one in operations_of(spec_of(package)) if one.type.startswith("constexpr")][operation]
    value = found.attributes[argument] if argument in found.attributes else found.inputs[argument].arguments[0].value
    assert value.WhichOneof("value") == "blobFileValue"
    content = bytearray((package / runtime.WEIGHTS_FILE).read_bytes())
    start = int.from_bytes(content[value.blobFileValue.offset + 16 : value.blobFileValue.offset + 24], "little")
    content[start] ^= bits
    (package / runtime.WEIGHTS_FILE).write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("operation", "name", "argument"),
    [
        (0, "word", "data"),
        (0, "word", "scale"),
        (1, "token_type", "data"),  # its few scales stand in the specification
        (2, "position", "data"),
        (2, "position", "scale"),
    ],
)
def test_a_changed_integer_of_a_table_is_found(
    operation: int, name: str, argument: str, case: Callable[..., Case]
) -> None:
    broken = case("bert", "int4 tables")
    flip(broken.package, operation, argument, 1)
    outcome = broken.verify()
    assert failed(outcome) == ["other weights"]
    assert f"{name}_embeddings.weight differ" in outcome["reason"]
    assert "1 of" in outcome["reason"]


def test_a_table_must_be_stored_as_its_integers(case: Callable[..., Case]) -> None:
    """The same numbers, multiplied out into floats, are not what the quantizer decided."""
    reference, file = case("bert", "int4 tables"), case("bert", "float")
    outcome = replace(reference, file=file.file).verify()
    assert {"layers", "other weights"} <= set(failed(outcome))
    assert "is not stored as integers and scales" in outcome["reason"]


def test_a_table_left_out_is_found(case: Callable[..., Case]) -> None:
    broken = case()

    def edit(spec: Any) -> None:
        """What reads the sum with the positions reads what came before it."""
        operations = operations_of(spec)
        norm = next(one for one in operations if one.type == "layer_norm")
        total = next(one for one in operations if one.outputs and one.outputs[0].name == norm_input(norm))
        norm.inputs["x"].arguments[0].name = total.inputs["x"].arguments[0].name
        operations.remove(total)

    edit_spec(broken.package, edit)
    assert failed(broken.verify()) == ["other weights"]


def norm_input(norm: Any) -> str:
    return str(norm.inputs["x"].arguments[0].name)


# -- another interface


def rename_input(spec: Any) -> None:
    spec.description.input[0].name = "ids"


def float_mask(spec: Any) -> None:
    array = spec.description.input[1].type.multiArrayType
    array.dataType = type(array).ArrayDataType.Value("FLOAT32")


def other_length(spec: Any) -> None:
    spec.description.input[0].type.multiArrayType.shape[1] = 128


def one_length_less(spec: Any) -> None:
    shapes = spec.description.input[1].type.multiArrayType.enumeratedShapes.shapes
    del shapes[-1]


def open_range(spec: Any) -> None:
    for value in spec.description.input:
        array = value.type.multiArrayType
        array.ClearField("enumeratedShapes")
        for low, high in ((1, 1), (2, LONGEST)):
            limits = array.shapeRange.sizeRanges.add()
            limits.lowerBound, limits.upperBound = low, high


def shuffle_labels(spec: Any) -> None:
    classify = next(one for one in operations_of(spec) if one.type == "classify")
    values = classify.inputs["classes"].arguments[0].value.immediateValue.list.values
    first = type(values[0]).FromString(values[0].SerializeToString())
    values[0].CopyFrom(values[1])
    values[1].CopyFrom(first)


def other_padding(spec: Any) -> None:
    spec.description.metadata.userDefined[runtime.TOKENS_KEY] = json.dumps({"max_length": LONGEST, "pad_id": 1})


def no_tokens(spec: Any) -> None:
    del spec.description.metadata.userDefined[runtime.TOKENS_KEY]


@pytest.mark.parametrize(
    ("length", "edit", "check"),
    [
        ("fixed", rename_input, "input"),
        ("fixed", float_mask, "input types"),
        ("fixed", other_length, "default length"),
        ("flexible", one_length_less, "lengths"),
        ("flexible", open_range, "lengths"),
        ("fixed", shuffle_labels, "labels"),
        ("fixed", other_padding, "tokens in metadata"),
        ("fixed", no_tokens, "tokens in metadata"),
    ],
)
def test_another_interface_is_found(
    length: str, edit: Callable[[Any], None], check: str, case: Callable[..., Case]
) -> None:
    broken = case("bert", "float", length)
    edit_spec(broken.package, edit)
    assert check in failed(broken.verify())


@pytest.mark.parametrize("length", ["fixed", "flexible"])
def test_a_package_for_other_texts_is_found(length: str, case: Callable[..., Case]) -> None:
    outcome = replace(case("bert", "float", length), longest=24).verify()
    assert {"default length", "lengths", "tokens in metadata"} <= set(failed(outcome))


def test_the_tokenizer_lies_beside_the_package(case: Callable[..., Case]) -> None:
    broken = case()
    path = broken.file / tokenizer.MAIN
    path.write_text(path.read_text().replace('"meeting"', '"meetings"'))
    outcome = broken.verify()
    assert failed(outcome) == ["tokenizer"]
    assert "its files are not those of the model" in outcome["reason"]
    path.unlink()
    outcome = broken.verify()
    assert failed(outcome) == ["tokenizer"]
    assert "tokenizer.json" in outcome["reason"]


def test_an_images_package_is_not_a_texts(digits: Any, case: Callable[..., Case], tmp_path: Path) -> None:
    Coreml().export(digits.torch("resnet"), digits.job(tmp_path / "image"))
    outcome = replace(case(), file=tmp_path / "image").verify()
    assert not outcome["passed"]
    assert {"input", "program input", "tokens in metadata", "tokenizer"} <= set(failed(outcome))


def test_compressed_tables_are_read_as_they_are_stored(case: Callable[..., Case]) -> None:
    """What the verification compares is what coremltools itself reads."""
    clean = case("bert", "int4 tables")
    stored = quantized_weights.read(clean.reference)
    assert stored is not None
    operations = open_package(clean.package).function.operations
    word = next(one for one in operations if one.op_type == "constexpr_blockwise_shift_scale")
    wanted = stored.weights["bert.embeddings.word_embeddings.weight"].tensors()
    assert np.array_equal(word.inputs["data"].val.astype(np.int8), wanted["integers"])
    assert np.array_equal(word.inputs["scale"].val, wanted["scales"])
