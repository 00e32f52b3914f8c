"""Core ML packages of text classifiers: what an app hands over, what they answer, and that padding has no say.

Answers come from the evaluator of Core ML programs and are held against torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from edgeforge.core.artifact import Artifact, hash_folder
from edgeforge.core.task import Input, Interface, Tokens
from edgeforge.exporters._coreml_inputs import _lengths, _plain_attention
from edgeforge.exporters.coreml import Coreml
from edgeforge.models import loading, quantized_weights
from edgeforge.models.quantized_weights import QuantizedWeight, QuantizedWeights
from edgeforge.quantizers._weights import linear, palettize
from edgeforge.runtimes import coreml as runtime
from edgeforge.runtimes.coreml_reference import CoremlReference

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytest.importorskip("coremltools")

FAMILIES = ("bert", "distilbert", "roberta", "electra")
LABELS = ("ham", "spam", "news")


def tiny(family: str, *, pad_id: int = 0) -> PreTrainedModel:
    """A classifier of 90 tokens and up to 40 of them, its weights large enough for every layer to matter."""
    import transformers

    sizes = {"vocab_size": 90, "max_position_embeddings": 44, "num_labels": len(LABELS), "pad_token_id": pad_id}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48}
    config = {
        "bert": lambda: transformers.BertConfig(**sizes, **heads),
        "roberta": lambda: transformers.RobertaConfig(**sizes, **heads),
        "electra": lambda: transformers.ElectraConfig(**sizes, **heads, embedding_size=24),
        "distilbert": lambda: transformers.DistilBertConfig(**sizes, n_layers=2, n_heads=4, dim=32, hidden_dim=48),
    }[family]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.xavier_normal_(parameter)
            else:
                torch.nn.init.normal_(parameter, mean=float(parameter.mean()), std=0.1)
    return model.eval()  # type: ignore[no-any-return]


def interface(*, longest: int = 40, pad_id: int = 0) -> Interface:
    inputs = tuple(Input(name, (longest,), "int64", variable=True) for name in ("input_ids", "attention_mask"))
    return Interface(inputs, "logits", LABELS, tokens=Tokens(90, longest, pad_id))


Job = Callable[[Interface, Path], Any]


@pytest.fixture
def job(mails: Any) -> Job:
    """A job of a text task with another interface."""
    from types import SimpleNamespace

    def make(promised: Interface, folder: Path) -> Any:
        folder.mkdir(parents=True, exist_ok=True)
        task = SimpleNamespace(open=lambda model=None: SimpleNamespace(interface=promised))
        return replace(mails.job(folder), task=task)

    return make


def artifact(folder: Path) -> Artifact:
    return Artifact("0123456789abcdef" * 4, "", "torch", folder, "", {}, {}, {})


def quantize(folder: Path, choose: Callable[[np.ndarray], QuantizedWeight]) -> None:
    """Quantize every weight of two axes of the model in a folder, embedding tables among them."""
    model = loading.load(folder)
    weights = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            weights[name] = choose(parameter.detach().numpy())
            parameter.data = torch.from_numpy(weights[name].dequantize())
    loading.save(model, folder)
    quantized_weights.write(QuantizedWeights(weights), folder)


def answers(folder: Path, ids: np.ndarray, mask: np.ndarray, *, precision: str = "float32") -> np.ndarray:
    """Probabilities, shape (N, labels)."""
    session = CoremlReference.model_validate({"precision": precision}).open(folder)
    probabilities: np.ndarray = np.exp(session.run({"input_ids": ids, "attention_mask": mask}))
    return probabilities


def tokens(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, 90, size=(1, length))


def expected(model: PreTrainedModel, ids: np.ndarray) -> np.ndarray:
    """What torch says of the tokens alone, without any padding."""
    with torch.no_grad():
        given = torch.from_numpy(ids)
        probabilities: np.ndarray = (
            model(input_ids=given, attention_mask=torch.ones_like(given)).logits.softmax(-1).numpy()
        )
    return probabilities


def padded(ids: np.ndarray, length: int, fill: int) -> tuple[np.ndarray, np.ndarray]:
    width = ((0, 0), (0, length - ids.shape[1]))
    return np.pad(ids, width, constant_values=fill), np.pad(np.ones_like(ids), width)


def program_of(package: Path) -> Any:
    main = runtime.load_coremltools().utils.load_spec(str(package)).mlProgram.functions["main"]
    return main.block_specializations[main.opset]


def constants_of(package: Path) -> list[np.ndarray]:
    """Every floating-point constant of a program, scalars included."""
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = runtime.load_coremltools().utils.load_spec(str(package))
    program = load(spec, spec.specificationVersion, str(package / runtime.WEIGHTS_FOLDER))
    values = [op.outputs[0].val for op in program.functions["main"].operations if op.op_type == "const"]
    given = [
        value.val
        for op in program.functions["main"].operations
        for value in op.inputs.values()
        if value is not None and not isinstance(value, list | tuple)
    ]
    return [np.asarray(value) for value in [*values, *given] if np.asarray(value).dtype.kind == "f"]


def test_an_app_sees_tokens_and_labels(mails: Any, tmp_path: Path) -> None:
    model = mails.torch("bert")
    facts = Coreml().export(model, mails.job(tmp_path))
    spec = runtime.load_coremltools().utils.load_spec(str(tmp_path / runtime.PACKAGE))
    description = spec.description
    assert [value.name for value in description.input] == ["input_ids", "attention_mask"]
    for value in description.input:
        array = value.type.multiArrayType
        assert list(array.shape) == [1, 16]
        assert type(array).ArrayDataType.Name(array.dataType) == "INT32"
        assert array.WhichOneof("ShapeFlexibility") is None
    assert "filled up with 0" in description.input[0].shortDescription
    assert [output.name for output in description.output] == ["classLabel", "classLabel_probs"]
    assert description.predictedFeatureName == "classLabel"
    metadata = description.metadata
    assert metadata.shortDescription == "Classifies a text as one of 2 labels."
    assert json.loads(metadata.userDefined["edgeforge.labels"]) == ["ham", "spam"]
    assert json.loads(metadata.userDefined["edgeforge.tokens"]) == {"max_length": 16, "pad_id": 0}
    assert "edgeforge.preprocessing" not in metadata.userDefined
    assert metadata.userDefined["edgeforge.recipe"] == model.key
    assert spec.specificationVersion == 8
    assert facts["minimum_deployment_target"] == "iOS17"
    assert facts["lengths"] == [16]
    assert (tmp_path / "tokenizer.json").read_bytes() == (model.path / "tokenizer.json").read_bytes()
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 16
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {"0": "ham", "1": "spam"}


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_has_no_say(family: str, job: Job, tmp_path: Path) -> None:
    """The program answers what torch answers to the tokens alone, whatever stands in the padding."""
    model = tiny(family)
    loading.save(model, tmp_path / "model")
    Coreml(precision="float32").export(artifact(tmp_path / "model"), job(interface(), tmp_path / "file"))
    for length in (1, 7, 40):
        ids = tokens(length, seed=length)
        for fill in (0, 9):
            found = answers(tmp_path / "file", *padded(ids, 40, fill))
            assert np.abs(found - expected(model, ids)).max() < 1e-5, (length, fill)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_float16_no_mask_becomes_infinite(family: str, job: Job, tmp_path: Path) -> None:
    model = tiny(family)
    loading.save(model, tmp_path / "model")
    Coreml().export(artifact(tmp_path / "model"), job(interface(), tmp_path / "file"))
    assert max(np.abs(value).max(initial=0) for value in constants_of(tmp_path / "file" / runtime.PACKAGE)) == 1e4
    ids = tokens(11)
    found = answers(tmp_path / "file", *padded(ids, 40, 0), precision="float16")
    assert np.abs(found - expected(model, ids)).max() < 5e-3
    nothing = answers(tmp_path / "file", np.zeros((1, 40), int), np.zeros((1, 40), int), precision="float16")
    assert nothing.sum() == pytest.approx(1, abs=5e-3)  # a text of padding alone: no answer, but a number


def test_positions_are_counted_from_the_padding_token(job: Job, tmp_path: Path) -> None:
    """RoBERTa counts tokens that are not padding, whatever number padding has."""
    model = tiny("roberta", pad_id=1)
    loading.save(model, tmp_path / "model")
    promised = interface(pad_id=1)
    Coreml(precision="float32").export(artifact(tmp_path / "model"), job(promised, tmp_path / "file"))
    ids = tokens(13)
    session = CoremlReference().open(tmp_path / "file")
    found = np.exp(session.run({"input_ids": ids, "attention_mask": np.ones_like(ids)}))  # which pads by itself
    assert np.abs(found - expected(model, ids)).max() < 1e-5


@pytest.mark.parametrize("family", ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[1:])])
def test_a_flexible_package_takes_several_lengths(family: str, job: Job, tmp_path: Path) -> None:
    model = tiny(family)
    loading.save(model, tmp_path / "model")
    flexible = Coreml(precision="float32", length="flexible")
    facts = flexible.export(artifact(tmp_path / "model"), job(interface(), tmp_path / "file"))
    assert facts["lengths"] == [16, 32, 40]
    assert facts["minimum_deployment_target"] == "iOS18"
    spec = runtime.load_coremltools().utils.load_spec(str(tmp_path / "file" / runtime.PACKAGE))
    for value in spec.description.input:
        array = value.type.multiArrayType
        assert list(array.shape) == [1, 40]
        assert sorted(tuple(one.shape) for one in array.enumeratedShapes.shapes) == [(1, 16), (1, 32), (1, 40)]
        assert "16, 32, 40" in spec.description.input[0].shortDescription
    for given, taken in ((1, 16), (7, 16), (16, 16), (20, 32), (33, 40), (40, 40)):
        ids = tokens(given, seed=given)
        found = answers(tmp_path / "file", *padded(ids, taken, 0))
        assert np.abs(found - expected(model, ids)).max() < 1e-5, (given, taken)


def test_lengths_are_powers_of_two_and_the_longest() -> None:
    assert _lengths(128) == (16, 32, 64, 128)
    assert _lengths(100) == (16, 32, 64, 100)
    assert _lengths(512) == (16, 32, 64, 128, 256, 512)
    assert _lengths(17) == (16, 17)
    assert _lengths(16) == (16,)
    assert _lengths(5) == (5,)


def test_of_one_length_flexible_is_fixed(mails: Any, tmp_path: Path) -> None:
    facts = Coreml(length="flexible").export(mails.torch("distilbert"), mails.job(tmp_path))
    assert facts["lengths"] == [16]
    assert facts["minimum_deployment_target"] == "iOS17"


SCHEMES: dict[str, Callable[[np.ndarray], QuantizedWeight]] = {
    "int4": lambda weight: linear(weight, 4, 8),
    "int8": lambda weight: linear(weight, 8, None),
    # 44 positions are not groups of 16, and 40 of them not of 44: palettes per weight and per part of one.
    "palettes": lambda weight: palettize(weight, 4, 4),
}


@pytest.mark.parametrize(
    ("family", "scheme", "length"),
    [
        ("bert", "int4", "fixed"),
        ("bert", "palettes", "fixed"),
        ("roberta", "int8", "fixed"),
        ("electra", "int4", "flexible"),
        pytest.param("distilbert", "palettes", "fixed", marks=pytest.mark.slow),
        pytest.param("bert", "palettes", "flexible", marks=pytest.mark.slow),
    ],
)
def test_embedding_tables_are_written_as_integers(
    family: str, scheme: str, length: str, job: Job, tmp_path: Path
) -> None:
    loading.save(tiny(family), tmp_path / "model")
    quantize(tmp_path / "model", SCHEMES[scheme])
    model = loading.load(tmp_path / "model")
    exporter = Coreml.model_validate({"precision": "float32", "length": length})
    facts = exporter.export(artifact(tmp_path / "model"), job(interface(), tmp_path / "file"))
    package = tmp_path / "file" / runtime.PACKAGE
    kind = "constexpr_lut_to_dense" if scheme == "palettes" else "constexpr_blockwise_shift_scale"
    sidecar = quantized_weights.read(tmp_path / "model")
    assert sidecar is not None
    assert [operation.type for operation in program_of(package).operations].count(kind) == len(sidecar.weights)
    covered = sum(weight.dequantize().size for weight in sidecar.weights.values())
    assert facts["coverage_percent"] == pytest.approx(100 * covered / sum(p.numel() for p in model.parameters()))
    assert max(value.size for value in constants_of(package)) < 512  # biases, norms, scales, palettes
    ids = tokens(21)
    found = answers(tmp_path / "file", *padded(ids, 32 if length == "flexible" else 40, 0))
    assert np.abs(found - expected(model, ids)).max() < 1e-5


def test_of_types_and_positions_only_what_is_read_is_stored(job: Job, tmp_path: Path) -> None:
    loading.save(tiny("bert"), tmp_path / "model")
    Coreml(precision="float32").export(artifact(tmp_path / "model"), job(interface(longest=12), tmp_path / "file"))
    shapes = [value.shape for value in constants_of(tmp_path / "file" / runtime.PACKAGE) if value.shape[-1:] == (32,)]
    assert (1, 12, 32) in shapes  # of 44 positions
    assert (1, 1, 32) in shapes  # of 2 types
    assert (44, 32) not in shapes


def test_the_same_model_is_the_same_bytes(mails: Any, tmp_path: Path) -> None:
    for attempt in "ab":
        Coreml().export(mails.torch("bert"), mails.job(tmp_path / attempt))
    assert hash_folder(tmp_path / "a") == hash_folder(tmp_path / "b")
    for path in hash_folder(tmp_path / "a"):
        assert str(Path.cwd()).encode() not in (tmp_path / "a" / path).read_bytes()


def test_nothing_is_printed(mails: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = mails.torch("electra")
    capfd.readouterr()
    Coreml().export(model, mails.job(tmp_path))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("mask", [True, False])
def test_plain_attention_is_torchs(mask: bool) -> None:
    chance = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 8, generator=chance) for _ in range(3))
    bias = torch.where(torch.rand(2, 1, 1, 5, generator=chance) > 0.5, 0.0, -1e4) if mask else None
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, bias)
    assert torch.allclose(_plain_attention(query, key, value, bias), wanted, atol=1e-6)
    scaled = torch.nn.functional.scaled_dot_product_attention(query, key, value, bias, scale=0.7)
    assert torch.allclose(_plain_attention(query, key, value, bias, 0.0, False, scale=0.7), scaled, atol=1e-6)
    assert _plain_attention(query, key, value, None, 0.0, True) is NotImplemented
    assert _plain_attention(query, key, value, torch.ones(5, 5, dtype=torch.bool)) is NotImplemented
