"""OpenVINO files are the torch model: its numbers, its names, its integers, beside what other programs read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch

from edgeforge import openvino_graph
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.core.task import model_inputs
from edgeforge.exporters.openvino import Openvino
from edgeforge.models import loading, quantized_weights
from edgeforge.quantizers import Quantizer
from edgeforge.quantizers.int4_weights import Int4Weights
from edgeforge.quantizers.int8_weights import Int8Weights
from edgeforge.runtimes.openvino import FLOAT_INPUTS, OpenvinoSession

if TYPE_CHECKING:
    Digits = Any


def samples(data: Any, count: int = 7) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model_inputs(data.data.batch("validation", range(count))).items()}


def torch_logits(model: Artifact, inputs: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = loading.load(model.path)(
            **{name: torch.from_numpy(array) for name, array in inputs.items()}
        ).logits.numpy()
    return logits


def logits(folder: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return OpenvinoSession(folder / openvino_graph.MODEL, settings=FLOAT_INPUTS).run(inputs)


@dataclass
class Written:
    folder: Path
    facts: Mapping[str, Any]


@pytest.fixture(scope="module", params=["resnet"])
def written(digits: Digits, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Written:
    folder = tmp_path_factory.mktemp(request.param)
    return Written(folder, Openvino().export(digits.torch(request.param), digits.job(folder)))


@pytest.mark.parametrize(("family", "written"), [(name, name) for name in ("resnet", "vit")], indirect=["written"])
def test_it_computes_what_torch_computes(digits: Digits, family: str, written: Written) -> None:
    expected = torch_logits(digits.torch(family), samples(digits))
    np.testing.assert_allclose(logits(written.folder, samples(digits)), expected, atol=1e-5 * np.abs(expected).max())
    assert written.facts["bytes"] == sum(path.stat().st_size for path in written.folder.glob("openvino_model.*"))
    # A classifier's product is followed by its bias and nothing else.
    assert "classifier" in list(openvino_graph.biases(openvino_graph.load(written.folder)))[-1]


def test_constants_are_folded(written: Written) -> None:
    assert set(written.facts["ops"]) == {
        *("Add", "Constant", "Convolution", "MatMul", "MaxPool", "Parameter", "ReduceMean", "Relu", "Reshape", "Result")
    }


def test_texts_of_any_length_up_to_the_greatest(mails: Any, tmp_path: Path) -> None:
    Openvino().export(mails.torch("bert"), mails.job(tmp_path))
    graph = openvino_graph.load(tmp_path)
    shapes = {value.any_name: str(value.partial_shape) for value in (*graph.inputs, *graph.outputs)}
    assert shapes == {"input_ids": "[?,1..16]", "attention_mask": "[?,1..16]", "logits": "[?,2]"}
    for count, length in ((1, 5), (3, 16)):
        inputs = {name: array[:, :length] for name, array in samples(mails, count).items()}
        expected = torch_logits(mails.torch("bert"), inputs)
        np.testing.assert_allclose(logits(tmp_path, inputs), expected, atol=1e-5 * np.abs(expected).max())
    longer = {name: np.ones((1, 17), dtype=np.int64) for name in ("input_ids", "attention_mask")}
    with pytest.raises(ModelError, match="the file does not run"):
        logits(tmp_path, longer)
    assert (tmp_path / "tokenizer.json").read_bytes() == (mails.torch("bert").path / "tokenizer.json").read_bytes()
    assert "bert.embeddings.word_embeddings" in openvino_graph.layers(graph)


def test_the_folder_says_what_it_is(digits: Digits, written: Written) -> None:
    names = {path.name for path in written.folder.iterdir()}
    assert names == {"openvino_model.xml", "openvino_model.bin", "config.json", "preprocessor_config.json"}
    config = json.loads((written.folder / "config.json").read_text())
    assert config["id2label"]["9"] == digits.data.interface.labels[9]
    graph = openvino_graph.load(written.folder)
    metadata = openvino_graph.metadata(graph)
    assert json.loads(metadata["labels"]) == list(digits.data.interface.labels)
    assert json.loads(metadata["preprocessing"])["mean"] == [0.5]
    assert [(value.any_name, str(value.partial_shape)) for value in graph.inputs] == [("pixel_values", "[?,1,8,8]")]


def test_the_same_bytes_again(digits: Digits, tmp_path: Path, written: Written) -> None:
    """In one process too, where the library numbers what it makes."""
    Openvino().export(digits.torch("resnet"), digits.job(tmp_path))
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (written.folder / path.name).read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()
        assert b"site-packages" not in path.read_bytes()


def test_layers_have_the_names_of_the_onnx_file(digits: Digits, written: Written) -> None:
    nodes = onnx.load(digits.onnx("resnet").path / "model.onnx").graph.node
    assert set(openvino_graph.layers(openvino_graph.load(written.folder))) == {node.name for node in nodes if node.name}


def test_half_precision_halves_the_numbers(digits: Digits, tmp_path: Path, written: Written) -> None:
    facts = Openvino(precision="float16").export(digits.torch("resnet"), digits.job(tmp_path))
    full, half = ((folder / openvino_graph.WEIGHTS).stat().st_size for folder in (written.folder, tmp_path))
    assert half < 0.51 * full
    assert (written.facts["precision"], facts["precision"]) == ("float32", "float16")
    expected = torch_logits(digits.torch("resnet"), samples(digits))
    apart = np.abs(logits(tmp_path, samples(digits)) - expected).max()
    assert 0 < apart < 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("family", "quantizer"),
    [
        ("resnet", Int8Weights(min_elements=64)),
        ("vit", Int4Weights(min_elements=64, block_size=8)),
        pytest.param("resnet", Int4Weights(min_elements=64, block_size=4), marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", Int8Weights(min_elements=16), marks=pytest.mark.slow),
        pytest.param("convnext", Int4Weights(min_elements=16, block_size=None), marks=pytest.mark.slow),
    ],
)
def test_a_quantizers_integers_are_written(digits: Digits, tmp_path: Path, family: str, quantizer: Quantizer) -> None:
    quantizer.quantize(digits.torch(family), digits.job(tmp_path / "torch"))
    model = digits.artifact(tmp_path / "torch", "torch")
    facts = Openvino().export(model, digits.job(tmp_path / "file"))
    chosen = quantized_weights.read(model.path)
    assert chosen is not None
    graph = openvino_graph.load(tmp_path / "file")
    layers = {name: layer for name, layer in openvino_graph.layers(graph).items() if openvino_graph.is_quantized(layer)}
    assert {f"{name}.weight" for name in layers} == set(chosen.weights)
    for name, layer in layers.items():
        stored = openvino_graph.stored(layer.weight)
        weight = chosen.weights[f"{name}.weight"]
        assert isinstance(weight, quantized_weights.LinearWeight)
        assert stored.get_element_type().get_type_name() == f"i{weight.bits}"
        np.testing.assert_array_equal(openvino_graph.integers(stored).reshape(weight.shape), weight.integers)
    assert facts["coverage_percent"] == pytest.approx(
        100 * sum(weight.integers.size for weight in chosen.weights.values()) / openvino_graph.numbers(graph)  # type: ignore[union-attr]
    )
    expected = torch_logits(model, samples(digits))
    np.testing.assert_allclose(logits(tmp_path / "file", samples(digits)), expected, atol=1e-4 * np.abs(expected).max())


def test_palettes_are_refused(digits: Digits, tmp_path: Path) -> None:
    quantizer = Int4Weights(method="palettize", min_elements=64)
    quantizer.quantize(digits.torch("resnet"), digits.job(tmp_path / "torch"))
    with pytest.raises(ModelError, match="OpenVINO has no palettes"):
        Openvino().export(digits.artifact(tmp_path / "torch", "torch"), digits.job(tmp_path / "file"))


@pytest.mark.slow
def test_relu6_is_one_operator(digits: Digits, tmp_path: Path) -> None:
    facts = Openvino().export(digits.torch("mobilenet_v2"), digits.job(tmp_path))
    assert facts["ops"]["Clamp"] == 35
    assert not {"Maximum", "Minimum"} & facts["ops"].keys()
