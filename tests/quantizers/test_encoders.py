"""Quantized text encoders: what becomes integers, the embeddings included, and what that costs."""

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
from onnx import numpy_helper

from edgeforge.exporters.onnx import Onnx
from edgeforge.quantizers import Quantizer
from edgeforge.quantizers._embeddings import Table, integer_table, quantize_embeddings
from edgeforge.quantizers._static import signal_to_noise
from edgeforge.quantizers._weights import linear
from edgeforge.quantizers.int4_weights import Int4Weights
from edgeforge.quantizers.int8_dynamic import Int8Dynamic
from edgeforge.quantizers.int8_static import Int8Static
from edgeforge.quantizers.int8_weights import Int8Weights
from edgeforge.quantizers.smooth_quant import SmoothQuant

if TYPE_CHECKING:
    Mails = Any

FAMILIES = [
    "bert",
    "roberta",
    *(pytest.param(family, marks=pytest.mark.slow) for family in ("distilbert", "electra")),
]
every_family = pytest.mark.parametrize("family", FAMILIES)


def quantized(
    mails: Mails, family: str, quantizer: Quantizer, folder: Path
) -> tuple[onnx.ModelProto, Mapping[str, Any]]:
    """The file that a quantizer makes of a family's tiny model, and its facts."""
    if "torch" in quantizer.accepts:
        facts = quantizer.quantize(mails.torch(family), mails.job(folder / "torch"))
        Onnx().export(mails.artifact(folder / "torch", "torch"), mails.job(folder))
    else:
        facts = quantizer.quantize(mails.onnx(family), mails.job(folder))
    return onnx.load(folder / "model.onnx"), facts


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def logits(mails: Mails, folder: Path) -> np.ndarray:
    """On texts of different lengths, padded."""
    batch = mails.data.batch("validation", range(16))
    assert bool((batch["attention_mask"] == 0).any())
    inputs = {name: batch[name].numpy() for name in ("input_ids", "attention_mask")}
    found: np.ndarray = onnxruntime.InferenceSession(folder / "model.onnx").run(None, inputs)[0]
    return found


def layers(model: onnx.ModelProto) -> int:
    """Products with a constant weight of the float file."""
    known = constants(model)
    return sum(node.op_type in ("Gemm", "MatMul") and node.input[1] in known for node in model.graph.node)


@every_family
def test_dynamic_makes_integers_of_every_layer_and_table(mails: Mails, family: str, tmp_path: Path) -> None:
    before = onnx.load(mails.onnx(family).path / "model.onnx")
    model, facts = quantized(mails, family, Int8Dynamic(), tmp_path)
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["MatMulInteger"] == len(facts["quantized"]) == layers(before) >= 20
    assert not any(array.dtype == np.float32 and array.ndim == 2 and len(array) >= 16 for array in wide(model))
    assert facts["coverage_percent"] > 94
    assert facts["embeddings"] == "int8"
    assert signal_to_noise(logits(mails, mails.onnx(family).path), logits(mails, tmp_path)) > 20


def wide(model: onnx.ModelProto) -> list[np.ndarray]:
    """Constants of two axes, but scales."""
    return [array for array in constants(model).values() if array.ndim == 2 and array.shape[1] > 1]


@every_family
def test_static_quantizes_layers_only(mails: Mails, family: str, tmp_path: Path) -> None:
    before = onnx.load(mails.onnx(family).path / "model.onnx")
    model, facts = quantized(mails, family, Int8Static(samples=64), tmp_path)
    operators = Counter(node.op_type for node in model.graph.node)
    assert len(facts["quantized"]) == layers(before)
    decoders = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    readers = {
        node.op_type for node in model.graph.node for name in node.input if name in {d.output[0] for d in decoders}
    }
    assert readers == {"Gemm", "MatMul"}
    # One rounding per input of layers: queries, keys and values share theirs.
    inputs = {node.input[0] for node in before.graph.node if node.op_type in ("Gemm", "MatMul") and reads(before, node)}
    assert operators["QuantizeLinear"] == len(inputs)
    assert signal_to_noise(logits(mails, mails.onnx(family).path), logits(mails, tmp_path)) > 20


def reads(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    return node.input[1] in {tensor.name for tensor in model.graph.initializer}


@pytest.mark.parametrize("calibration", ["percentile", "entropy"])
def test_every_calibration_takes_texts_of_any_length(mails: Mails, tmp_path: Path, calibration: str) -> None:
    quantizer = Int8Static.model_validate({"samples": 50, "calibration": calibration})
    _, facts = quantized(mails, "bert", quantizer, tmp_path)
    assert facts["samples"] == 50
    assert signal_to_noise(logits(mails, mails.onnx("bert").path), logits(mails, tmp_path)) > 15


@pytest.mark.parametrize("quantizer", [Int8Dynamic, Int8Static, SmoothQuant])
def test_embeddings_are_a_choice(mails: Mails, tmp_path: Path, quantizer: type[Quantizer]) -> None:
    """Words and positions, 32 numbers a row: 36 bytes of 128 with the row's scale, or 20."""
    said = {} if quantizer is Int8Dynamic else {"samples": 16}
    sizes, answers = {}, {}
    for choice in ("float", "int8", "int4"):
        folder = tmp_path / choice
        model, facts = quantized(mails, "bert", quantizer.model_validate({**said, "embeddings": choice}), folder)
        sizes[choice] = sum(array.nbytes for array in constants(model).values())
        answers[choice] = logits(mails, folder)
        assert facts.get("embeddings") == (None if choice == "float" else choice)
        assert ("tables" in json.loads((folder / "quantization.json").read_text())) is True
    config = json.loads((mails.onnx("bert").path / "config.json").read_text())
    rows = config["vocab_size"] + config["max_position_embeddings"]
    assert sizes["float"] - sizes["int8"] == rows * (4 * 32 - 32 - 4)
    assert sizes["float"] - sizes["int4"] == rows * (4 * 32 - 16 - 4)
    assert signal_to_noise(answers["float"], answers["int8"]) > signal_to_noise(answers["float"], answers["int4"]) + 10
    assert signal_to_noise(answers["float"], answers["int8"]) > 20


# -- the numbers of a table


def test_8_bits_per_row_are_those_of_onnx_runtimes_own_rows() -> None:
    """Each row alone, quantized per tensor by ONNX Runtime's library."""
    from onnxruntime.quantization.quant_utils import QuantType, quantize_data

    weight = np.random.default_rng(0).normal(size=(5, 24)).astype(np.float32)
    ours = integer_table(weight, Table(8, None))
    for row in range(5):
        zero_point, scale, integers = quantize_data(weight[row], QuantType.QInt8.tensor_type, True)[-3:]
        assert int(zero_point) == 0
        np.testing.assert_allclose(ours.scales[row], scale, rtol=1e-6)
        np.testing.assert_array_equal(ours.integers[row], integers)


def test_4_bits_use_all_16_values() -> None:
    """Less squared error than the symmetric grid of 15 values that ends at the largest magnitude."""
    weight = np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32)
    ours = integer_table(weight, Table(4, 32))
    assert set(np.unique(ours.integers)) == set(range(-8, 8))
    decoded = ours.integers * np.repeat(ours.scales, 32, axis=1)
    plain = linear(weight, 4, 32).dequantize()
    assert np.square(decoded - weight).sum() < 0.85 * np.square(plain - weight).sum()


@pytest.mark.parametrize("table", [Table(8, None), Table(4, 32)])
def test_rows_of_zeros_stay_zeros(table: Table) -> None:
    weight = np.ones((3, 40), np.float32)
    weight[1] = 0
    ours = integer_table(weight, table)
    assert np.isfinite(ours.scales).all()
    assert not ours.integers[1].any()
    assert ours.scales.shape == (3, 1 if table.block_size is None else 2)


def test_tables_that_something_else_reads_stay_float(mails: Mails) -> None:
    model = onnx.load(mails.onnx("bert").path / "model.onnx")
    words = max(constants(model).items(), key=lambda item: item[1].size)[0]
    model.graph.node.append(onnx.helper.make_node("Identity", [words], ["copy"]))
    assert words not in quantize_embeddings(model, "int8")


# -- weights alone


@pytest.mark.parametrize(
    ("quantizer", "gather"),
    [
        (Int4Weights(min_elements=64, block_size=16), "GatherBlockQuantized"),
        (Int4Weights(min_elements=64, block_size=None), "GatherBlockQuantized"),
        (Int8Weights(min_elements=64), "Mul"),
    ],
)
def test_weight_only_files_look_rows_up_in_integers(
    mails: Mails, tmp_path: Path, quantizer: Quantizer, gather: str
) -> None:
    before = onnx.load(mails.onnx("bert").path / "model.onnx")
    model, facts = quantized(mails, "bert", quantizer, tmp_path)
    count, least = (Counter(node.op_type for node in item.graph.node) for item in (model, before))
    assert count[gather] - least[gather] == 2
    assert not any(array.dtype == np.float32 and array.shape[1] == 32 and len(array) > 16 for array in wide(model))
    assert {"bert.embeddings.word_embeddings.weight", "bert.embeddings.position_embeddings.weight"} <= set(
        facts["quantized"]
    )
    assert facts["kept_float"]["bert.embeddings.token_type_embeddings.weight"]
    if gather == "GatherBlockQuantized":
        assert count["MatMulNBits"] == layers(before)
        levels = [item.i for node in model.graph.node for item in node.attribute if item.name == "accuracy_level"]
        assert set(levels) == {4}


def test_embeddings_may_stay_float(mails: Mails, tmp_path: Path) -> None:
    _, facts = quantized(mails, "bert", Int4Weights(min_elements=64, embeddings=False), tmp_path)
    assert not any("embeddings" in name for name in facts["quantized"])
    assert "bert.embeddings.word_embeddings.weight" in facts["kept_float"]
