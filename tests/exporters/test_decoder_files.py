"""Language models as files with memory: their answers against torch, step by step and at once."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeforge import onnx_graph
from edgeforge.core.errors import ModelError
from edgeforge.core.task import model_inputs
from edgeforge.exporters.coreml import Coreml
from edgeforge.exporters.onnx import Onnx
from edgeforge.models import loading, quantized_weights
from edgeforge.quantizers.int4_weights import Int4Weights
from edgeforge.quantizers.int8_weights import Int8Weights
from edgeforge.runtimes._coreml_decoder import CoremlDecoder
from edgeforge.runtimes.coreml_reference import CoremlReference
from edgeforge.runtimes.onnxruntime import Onnxruntime

FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]
by_optimum = pytest.mark.skipif(find_spec("optimum") is None, reason="optimum does not allow this transformers")
PROMPTS = [[5, 9, 200, 31, 7], [40, 3]]


def batch_of(tales: Any) -> dict[str, Any]:
    return dict(model_inputs(tales.data.batch("test", range(3))))


def logits_of(folder: Path, batch: dict[str, Any]) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = loading.load(folder)(**batch).logits.numpy()
    return found


def arrays(batch: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in batch.items()}


def greedy(folder: Path, prompt: list[int], count: int) -> list[int]:
    """By plain forward passes over the whole text."""
    model, text = loading.load(folder), list(prompt)
    with torch.no_grad():
        for _ in range(count):
            token = int(model(input_ids=torch.tensor([text])).logits[0, -1].argmax())
            if token == model.config.eos_token_id:
                break
            text.append(token)
    return text[len(prompt) :]


@by_optimum
@pytest.mark.parametrize("family", FAMILIES)
def test_an_onnx_decoder_answers_as_torch_does_and_remembers(tales: Any, tmp_path: Path, family: str) -> None:
    model = tales.torch(family)
    facts = Onnx().export(model, tales.job(tmp_path / "file"))
    session = Onnxruntime().open(tmp_path / "file")
    batch = batch_of(tales)
    expected = logits_of(model.path, batch)
    found = session.run(arrays(batch))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy()
    first, cache = session.step(ids[:, :10], mask[:, :10], session.empty(len(ids)))
    second, _ = session.step(ids[:, 10:], mask, cache)
    assert np.abs(np.concatenate([first, second], axis=1) - found).max() < 1e-4
    assert session.generate(PROMPTS, 8) == [greedy(model.path, prompt, 8) for prompt in PROMPTS]
    assert facts["bytes"] == (tmp_path / "file" / onnx_graph.MODEL).stat().st_size
    assert json.loads((tmp_path / "file" / "generation_config.json").read_text())["eos_token_id"] == 2


@by_optimum
@pytest.mark.parametrize("quantizer", [Int4Weights(), Int8Weights()], ids=lambda spec: spec.kind)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_an_onnx_decoder_holds_the_integers_of_its_quantizer(
    tales: Any, tmp_path: Path, family: str, quantizer: Int4Weights | Int8Weights
) -> None:
    quantizer.quantize(tales.torch(family), tales.job(tmp_path / "torch"))
    model = tales.artifact(tmp_path / "torch", "torch")
    facts = Onnx().export(model, tales.job(tmp_path / "file"))
    proto = onnx_graph.load(tmp_path / "file")
    products = [node for node in proto.graph.node if node.op_type == "MatMulNBits"]
    # Three layers of seven products each, and the head, tied to the embedding or not.
    assert len(products) == 22
    assert facts["coverage_percent"] > 99
    for node in products:
        level = next(item for item in node.attribute if item.name == "accuracy_level")
        level.i = 1  # activations as they are
    onnx_graph.save(proto, tmp_path / "file")
    batch = batch_of(tales)
    expected = logits_of(model.path, batch)
    found = Onnxruntime().open(tmp_path / "file").run(arrays(batch))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES if family != "llama")]
)
def test_a_core_ml_decoder_answers_as_torch_does_and_remembers(tales: Any, tmp_path: Path, family: str) -> None:
    model = tales.torch(family)
    facts = Coreml(precision="float32", context=64).export(model, tales.job(tmp_path / "file"))
    session = CoremlReference().open(tmp_path / "file")
    batch = batch_of(tales)
    expected = logits_of(model.path, batch)
    # The states are float16, whatever the arithmetic is.
    found = session.run(arrays(batch))
    assert np.abs(found - expected).max() < 4e-3 * np.abs(expected).max()
    assert facts["minimum_deployment_target"] == "iOS18"
    ids = batch["input_ids"][0].tolist()
    state = session.model.make_state()
    steps = [session.read([token], state, start=place) for place, token in enumerate(ids[:12])]
    assert np.abs(np.concatenate(steps, axis=1) - found[:1, :12]).max() < 4e-3 * np.abs(expected).max()
    assert session.generate(PROMPTS[:1], 6) == [greedy(model.path, PROMPTS[0], 6)]


def test_a_core_ml_decoder_holds_the_integers_of_its_quantizer(tales: Any, tmp_path: Path) -> None:
    Int4Weights().quantize(tales.torch("llama"), tales.job(tmp_path / "torch"))
    model = tales.artifact(tmp_path / "torch", "torch")
    facts = Coreml(precision="float32").export(model, tales.job(tmp_path / "file"))
    assert facts["coverage_percent"] > 99
    weights = (tmp_path / "file" / "model.mlpackage" / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    numbers = sum(item.integers.size for item in quantized_weights.read(model.path).weights.values())
    assert weights < 0.8 * numbers  # half a byte each and scales; tied embeddings may stand there twice
    batch = batch_of(tales)
    expected = logits_of(model.path, batch)
    found = CoremlReference().open(tmp_path / "file").run(arrays(batch))
    assert np.abs(found - expected).max() < 4e-3 * np.abs(expected).max()


def test_a_context_beyond_the_models_positions_is_refused(tales: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="positions for 256 tokens"):
        Coreml(context=512).export(tales.torch("llama"), tales.job(tmp_path / "file"))


def test_more_tokens_than_a_package_remembers_are_refused() -> None:
    session = CoremlDecoder(None, json.dumps({"context": 16, "chunk": 8, "pad_id": 0, "ends": []}))
    with pytest.raises(ModelError, match="17 tokens are more than the 16"):
        session.read([5] * 3, None, start=14)
