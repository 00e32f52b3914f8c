"""Rounding with an eye on the inputs: GPTQ against the plain formula, HQQ's norm, AWQ's scales."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeforge.core.errors import IncompatiblePlanError, ModelError
from edgeforge.core.task import model_inputs
from edgeforge.models import loading, quantized_weights
from edgeforge.models.quantized_weights import LinearWeight
from edgeforge.quantizers._calibrated import DAMPING, EXPONENTS, Products, gptq, input_products, scale_channels
from edgeforge.quantizers._weights import half_quadratic, linear
from edgeforge.quantizers.int4_weights import Int4Weights
from edgeforge.quantizers.int8_weights import Int8Weights


def inputs_and_weight(inputs: int = 24, outputs: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Correlated inputs, as layers have them, and a weight."""
    random = np.random.default_rng(0)
    mixed = random.normal(size=(400, inputs)) @ random.normal(size=(inputs, inputs))
    return mixed, random.normal(size=(outputs, inputs)).astype(np.float32)


def plain_obq(weight: np.ndarray, product: np.ndarray, start: LinearWeight) -> np.ndarray:
    """Optimal brain quantization (Frantar and Alistarh, 2022) in a fixed order, its inverse updated by elimination."""
    hessian = product + DAMPING * product.diagonal().mean() * np.eye(len(product))
    order = np.argsort(-hessian.diagonal(), kind="stable")
    inverse = np.linalg.inv(hessian)
    scales = np.repeat(start.scales.astype(np.float64), weight.shape[1] // start.scales.shape[1], axis=1)
    rest, integers = weight.astype(np.float64).copy(), np.zeros(weight.shape)
    left = np.ones(len(product), dtype=bool)
    for column in order:
        integers[:, column] = np.rint(rest[:, column] / scales[:, column]).clip(-8, 7)
        error = (rest[:, column] - integers[:, column] * scales[:, column]) / inverse[column, column]
        left[column] = False
        rest[:, left] -= np.outer(error, inverse[column, left])
        inverse = inverse - np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return integers


@pytest.mark.parametrize("block", [None, 8])
def test_gptq_gives_the_integers_of_the_plain_formula(block: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    values, weight = inputs_and_weight()
    product = values.T @ values / len(values)
    start = linear(weight, 4, block)
    monkeypatch.setattr("edgeforge.quantizers._calibrated.COLUMNS", 7)
    found = gptq(weight, torch.from_numpy(product), start)
    assert np.array_equal(found.integers, plain_obq(weight, product, start))
    assert np.array_equal(found.scales, start.scales)


def test_gptq_moves_outputs_less_and_weights_more_than_rounding_to_nearest() -> None:
    values, weight = inputs_and_weight(64, 32)
    start = linear(weight, 4, 32, search=True)
    found = gptq(weight, torch.from_numpy(values.T @ values / len(values)), start)
    moved = [np.square(values @ (item.dequantize() - weight).T).sum() for item in (found, start)]
    assert moved[0] < 0.6 * moved[1]
    assert np.square(found.dequantize() - weight).sum() > np.square(start.dequantize() - weight).sum()


def test_an_input_that_is_always_zero_is_rounded_to_nearest() -> None:
    values, weight = inputs_and_weight()
    values[:, 3] = 0
    start = linear(weight, 4, 8)
    found = gptq(weight, torch.from_numpy(values.T @ values), start)
    assert np.array_equal(found.integers[:, 3], start.integers[:, 3])


def test_hqq_lessens_the_norm_that_it_is_made_for() -> None:
    weight = np.random.default_rng(1).standard_t(3, size=(40, 128)).astype(np.float32)
    nearest, found = linear(weight, 4, 32), half_quadratic(weight, 4, 32)
    norms = [(np.abs(item.dequantize().astype(np.float64) - weight) ** 0.7).sum() for item in (found, nearest)]
    assert norms[0] < 0.97 * norms[1]
    expected = np.rint(weight.reshape(40, 4, 32) / found.scales.astype(np.float64)[..., None]).clip(-8, 7)
    assert np.array_equal(found.integers, expected.reshape(40, 128))
    assert found.scales.dtype == np.float16


def test_hqq_of_zeros_and_of_a_kernel() -> None:
    assert not half_quadratic(np.zeros((2, 32), dtype=np.float32), 4, 32).dequantize().any()
    kernel = np.random.default_rng(1).normal(size=(6, 8, 3, 3)).astype(np.float32)
    assert half_quadratic(kernel, 8, None).integers.shape == kernel.shape


# -- on models


def logits(network: Any, tales: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = network(**model_inputs(tales.data.batch("test", range(6)))).logits
    return found


def test_products_are_those_of_the_layers_inputs(tales: Any, tmp_path: Path) -> None:
    network = loading.load(tales.torch("qwen2").path)
    name = "model.layers.1.mlp.up_proj.weight"
    kept: list[torch.Tensor] = []
    layer = network.get_submodule(name.removesuffix(".weight"))
    handle = layer.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    with torch.no_grad():
        network(**model_inputs(tales.data.batch("train", range(5))))
    handle.remove()
    rows = kept[0].reshape(-1, kept[0].shape[-1]).double()
    gate = "model.layers.1.mlp.gate_proj.weight"
    found = input_products(network, [name, gate], tales.job(tmp_path), samples=5)
    assert torch.allclose(found.by_weight[name], rows.T @ rows / 5)
    assert found.by_weight[gate] is not None
    assert torch.equal(found.by_weight[gate], found.by_weight[name])


def test_products_leave_padding_out(mails: Any, tmp_path: Path) -> None:
    network = loading.load(mails.torch("bert").path)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    batch = model_inputs(mails.data.batch("train", range(6)))
    with torch.no_grad():
        states = network.bert.embeddings(input_ids=batch["input_ids"])
    rows = states[batch["attention_mask"].bool()].double()
    found = input_products(network, [name], mails.job(tmp_path), samples=6)
    assert torch.allclose(found.by_weight[name], rows.T @ rows / 6, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_awq_keeps_the_function_and_lessens_the_error(tales: Any, tmp_path: Path, family: str) -> None:
    network = loading.load(tales.torch(family).path)
    with torch.no_grad():
        network.model.layers[0].input_layernorm.weight[5] *= 40  # a channel that large values pass through
    before = logits(network, tales)
    names = [name for name, value in network.named_parameters() if value.dim() == 2]
    products = input_products(network, names, tales.job(tmp_path), samples=8)
    plain = {name: network.get_parameter(name).detach().numpy().copy() for name in names}

    def choose(weight: np.ndarray) -> LinearWeight:
        return linear(weight, 4, 32)

    scaled, powers = scale_channels(network, products, choose)
    assert torch.allclose(logits(network, tales), before, atol=2e-4)
    query = "model.layers.0.self_attn.q_proj.weight"
    assert powers[query] > 0
    assert set(powers.values()) <= set(EXPONENTS)
    after = network.get_parameter(query).detach().numpy()
    errors = [
        of.error(query, torch.from_numpy(choose(weight).dequantize() - weight).double())
        for of, weight in ((scaled, after), (products, plain[query]))
    ]
    assert errors[0] < 0.7 * errors[1]


def test_awq_finds_no_place_in_an_encoder(mails: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="AWQ scales nothing in a BertForSequenceClassification"):
        Int4Weights(awq=True, samples=4).quantize(mails.torch("bert"), mails.job(tmp_path))


def test_palettes_are_not_rounded() -> None:
    with pytest.raises(IncompatiblePlanError, match="k-means"):
        Int4Weights(method="palettize", rounding="gptq").check("coreml")


@pytest.mark.parametrize(
    "quantizer",
    [
        Int4Weights(rounding="gptq", samples=16),
        Int4Weights(rounding="gptq", awq=True, samples=16),
        Int8Weights(rounding="hqq", block_size=32),
        Int8Weights(rounding="gptq", samples=16),
    ],
    ids=lambda spec: f"{spec.kind} {spec.rounding} {spec.awq}",
)
def test_the_artifact_holds_what_the_method_chose(tales: Any, tmp_path: Path, quantizer: Any) -> None:
    model = tales.torch("llama")
    facts = quantizer.quantize(model, tales.job(tmp_path))
    found = quantized_weights.read(tmp_path)
    assert found is not None
    network = loading.load(tmp_path)
    for name, weight in found.weights.items():
        assert np.array_equal(network.get_parameter(name).detach().numpy(), weight.dequantize())
    assert ("awq_powers" in facts) is quantizer.awq
    assert facts["coverage_percent"] > 99


def test_gptq_brings_a_language_models_answers_nearer(tales: Any, tmp_path: Path) -> None:
    model = tales.torch("llama")
    exact = logits(loading.load(model.path), tales).log_softmax(dim=-1)
    divergences = {}
    for rounding in ("nearest", "gptq"):
        Int4Weights(rounding=rounding, samples=64).quantize(model, tales.job(tmp_path / rounding))  # type: ignore[arg-type]
        found = logits(loading.load(tmp_path / rounding), tales).log_softmax(dim=-1)
        divergences[rounding] = float((exact.exp() * (exact - found)).sum(dim=-1).mean())
    assert divergences["gptq"] < 0.97 * divergences["nearest"]


def test_products_name_the_error_of_a_moved_weight() -> None:
    values, weight = inputs_and_weight()
    moved = torch.from_numpy(weight * 0.1).double()
    products = Products({"w": torch.from_numpy(values.T @ values / len(values))})
    assert products.error("w", moved) == pytest.approx(np.square(values @ moved.numpy().T).sum() / len(values))
