"""INT8 OpenVINO files: what is quantized, from which data, and the traps of the library that are stepped around."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgeforge import openvino_graph
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ConfigurationError, ModelError
from edgeforge.exporters.openvino import Openvino
from edgeforge.models import loading
from edgeforge.quantizers.int8_openvino import Int8Openvino
from edgeforge.runtimes.openvino import OpenvinoSession

if TYPE_CHECKING:
    Digits = Any
    Exported = Callable[..., Artifact]

SAMPLES = 40


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """(data, family) -> the family's tiny model as an OpenVINO file, made once."""
    made: dict[str, Artifact] = {}

    def export(data: Digits, family: str) -> Artifact:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            facts = Openvino().export(data.torch(family), data.job(folder))
            made[family] = data.artifact(folder, "openvino", facts)
        return made[family]

    return export


def quantized(data: Digits, model: Artifact, folder: Path, **fields: Any) -> tuple[Any, Mapping[str, Any]]:
    facts = Int8Openvino(**{"samples": SAMPLES, **fields}).quantize(model, data.job(folder))
    return openvino_graph.load(folder), facts


def logits(folder: Path, images: np.ndarray, batch: int) -> np.ndarray:
    session = OpenvinoSession(folder / openvino_graph.MODEL)
    parts = range(0, len(images), batch)
    return np.concatenate([session.run({"pixel_values": images[start : start + batch]}) for start in parts])


def test_a_convolutional_network_is_quantized_from_end_to_end(
    digits: Digits, exported: Exported, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = exported(digits, "resnet")
    graph, facts = quantized(digits, model, tmp_path)
    assert capfd.readouterr().out == ""
    assert (len(facts["quantized"]), facts["kept_float"], facts["smooth_quant"]) == (12, {}, False)
    assert facts["coverage_percent"] > 99
    assert (tmp_path / openvino_graph.WEIGHTS).stat().st_size < 0.28 * (
        model.path / openvino_graph.WEIGHTS
    ).stat().st_size
    # Symmetric, per output channel, to nearest: computed here from torch's own weights.
    state = loading.load(digits.torch("resnet").path).state_dict()
    weight = state["classifier.1.weight"].numpy()
    layer = openvino_graph.layers(graph)["classifier.1"]
    scales = np.abs(weight).max(axis=1, keepdims=True) / 127
    np.testing.assert_allclose(openvino_graph.scales(layer), scales, rtol=1e-5)
    integers = openvino_graph.integers(openvino_graph.stored(layer.weight))
    assert integers.dtype == np.int8
    assert np.abs(integers - weight / scales).max() < 0.501
    # Without bias correction, biases are the float file's.
    floats = openvino_graph.biases(openvino_graph.load(model.path))
    for name, bias in openvino_graph.biases(graph).items():
        np.testing.assert_array_equal(bias, floats[name])
    assert {"config.json", "preprocessor_config.json", "quantization.json"} < {path.name for path in tmp_path.iterdir()}


def test_it_stays_near_the_float_model(digits: Digits, exported: Exported, tmp_path: Path) -> None:
    """NNCF's own defaults lose more here: a mean of extremes cuts off, a fast bias correction misses."""
    model = exported(digits, "resnet")
    quantized(digits, model, tmp_path)
    images = digits.data.batch("validation", range(100))["pixel_values"].numpy()
    clean, found = logits(model.path, images, 100), logits(tmp_path, images, 100)
    error = np.sqrt(np.square(found - clean).mean() / np.square(clean).mean())
    assert 0 < error < 0.1
    assert (clean.argmax(1) == found.argmax(1)).mean() > 0.95


def test_the_same_seed_gives_the_same_bytes(digits: Digits, exported: Exported, tmp_path: Path) -> None:
    for name in ("one", "two"):
        quantized(digits, exported(digits, "resnet"), tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_layers_that_are_kept_stay_float(digits: Digits, exported: Exported, tmp_path: Path) -> None:
    model = exported(digits, "resnet")
    _, facts = quantized(digits, model, tmp_path, keep=("resnet.embedder", "classifier.?"))
    first = "resnet.embedder.embedder.convolution"
    assert facts["kept_float"] == {first: "named in keep", "classifier.1": "named in keep"}
    with pytest.raises(ConfigurationError, match=r"'clasifier\.1'; perhaps you meant 'classifier\.1'"):
        quantized(digits, model, tmp_path, keep=("clasifier.1",))


def test_only_training_data_are_read_one_sample_at_a_time(digits: Digits, exported: Exported, tmp_path: Path) -> None:
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

    job = replace(digits.job(tmp_path), task=Task())
    facts = Int8Openvino(samples=20).quantize(exported(digits, "resnet"), job)
    assert asked == [("train", 1)] * 20
    assert facts["samples"] == 20


@pytest.mark.parametrize("correction", ["fast", pytest.param("accurate", marks=pytest.mark.slow)])
def test_bias_correction_moves_biases_alone(
    digits: Digits, exported: Exported, tmp_path: Path, correction: str
) -> None:
    model = exported(digits, "resnet")
    plain, _ = quantized(digits, model, tmp_path / "plain")
    moved, facts = quantized(digits, model, tmp_path / "moved", bias_correction=correction)
    assert facts["bias_correction"] == correction
    before, after = openvino_graph.biases(plain), openvino_graph.biases(moved)
    assert any(not np.array_equal(after[name], bias) for name, bias in before.items())
    layers = openvino_graph.layers(moved)
    for name, layer in openvino_graph.layers(plain).items():
        np.testing.assert_array_equal(
            openvino_graph.constant(layer.weight), openvino_graph.constant(layers[name].weight)
        )


def test_attention_is_smoothed_and_its_own_products_stay_float(
    digits: Digits, exported: Exported, tmp_path: Path
) -> None:
    graph, facts = quantized(digits, exported(digits, "vit"), tmp_path)
    assert facts["smooth_quant"] is True
    assert len(facts["quantized"]) == 20
    softmaxes = [node for node in graph.get_ops() if node.get_type_name() == "Softmax"]
    readers = [reader.get_node() for node in softmaxes for reader in node.output(0).get_target_inputs()]
    assert [node.get_type_name() for node in readers] == ["MatMul"] * 3


def test_tables_have_a_scale_per_row_and_single_rows_stay_float(mails: Any, exported: Exported, tmp_path: Path) -> None:
    """A quantized table of one row (RoBERTa's token types) makes a file that OpenVINO 2026.4 cannot open."""
    graph, facts = quantized(mails, exported(mails, "roberta"), tmp_path)
    assert facts["kept_float"] == {"roberta.embeddings.token_type_embeddings": "a table of one row"}
    words = openvino_graph.layers(graph)["roberta.embeddings.word_embeddings"]
    table = loading.load(mails.torch("roberta").path).state_dict()["roberta.embeddings.word_embeddings.weight"]
    largest = table.abs().max(dim=1, keepdim=True).values.numpy()
    np.testing.assert_allclose(openvino_graph.scales(words)[largest > 0], (largest / 127)[largest > 0], rtol=1e-5)
    OpenvinoSession(tmp_path / openvino_graph.MODEL)


@pytest.mark.slow
def test_a_batch_of_one_is_right_on_images_of_one_pixel(digits: Digits, exported: Exported, tmp_path: Path) -> None:
    """OpenVINO 2026.4 answers at random where a depthwise convolution of one pixel takes integers."""
    _, facts = quantized(digits, exported(digits, "mobilenet_v2"), tmp_path)
    assert len(facts["float_inputs"]) == 13
    images = digits.data.batch("validation", range(8))["pixel_values"].numpy()
    together, alone = logits(tmp_path, images, 8), logits(tmp_path, images, 1)
    np.testing.assert_allclose(alone, together, atol=0.02 * np.abs(together).max())


def test_a_model_of_numbers_that_are_not_finite(digits: Digits, exported: Exported, tmp_path: Path) -> None:
    graph = openvino_graph.load(exported(digits, "resnet").path)
    from openvino import opset13 as ops

    layer = openvino_graph.layers(graph)["classifier.1"]
    weight = np.full_like(openvino_graph.constant(layer.weight), np.nan)
    layer.node.input(layer.port).replace_source_output(ops.constant(weight).output(0))
    openvino_graph.save(graph, tmp_path, metadata={})
    with pytest.raises(ModelError, match=r"classifier\.1 holds numbers that are not finite"):
        quantized(digits, digits.artifact(tmp_path, "openvino"), tmp_path / "int8")


def test_the_record_names_every_rounded_value(digits: Digits, exported: Exported, tmp_path: Path) -> None:
    graph, _ = quantized(digits, exported(digits, "resnet"), tmp_path)
    record = json.loads((tmp_path / "quantization.json").read_text())
    values = openvino_graph.quantized_values(graph)
    assert record["values"] == values
    assert len(values) == sum(node.get_type_name() == "FakeQuantize" for node in graph.get_ops())
    assert len(record["biases"]) == 12
