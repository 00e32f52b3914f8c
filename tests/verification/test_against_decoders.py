"""`edgeforge verify FILE --against TORCH_DIR` of language models: weights, and what is expected next."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeforge.commands import verify as command
from edgeforge.exporters.coreml import Coreml
from edgeforge.exporters.gguf import Gguf
from edgeforge.exporters.onnx import Onnx
from edgeforge.models import loading
from edgeforge.quantizers.int4_weights import Int4Weights
from edgeforge.verification import Check

PARITY, WEIGHTS = "parity with torch", "weights are the model's"


@pytest.fixture(scope="module")
def torch_folder(tales: Any) -> Path:
    folder: Path = tales.torch("qwen2").path
    return folder


@pytest.fixture(scope="module")
def package(tales: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More places than it reads at once (64), so that what it remembers counts."""
    pytest.importorskip("coremltools")
    folder = tmp_path_factory.mktemp("decoder") / "file"
    Coreml(context=96).export(tales.torch("qwen2"), tales.job(folder))
    return folder / "model.mlpackage"


def checked(path: Path, against: Path | None) -> dict[str, Check]:
    (found,) = command.check(path, against=against)
    return {check.name: check for check in found.checks}


def failed(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if check.passed is False}


def changed(folder: Path, target: Path, change: Callable[[Any], None]) -> Path:
    """Another torch model, with the same tokenizer."""
    network = loading.load(folder)
    change(network)
    loading.save(network, target, tokenizer_from=folder)
    return target


def alone(package: Path, tmp_path: Path) -> Path:
    """The package without what lies beside it."""
    shutil.copytree(package, tmp_path / "alone" / package.name)
    return tmp_path / "alone" / package.name


# -- Core ML


def test_a_package_alone_is_asked(package: Path, torch_folder: Path, tmp_path: Path) -> None:
    checks = checked(alone(package, tmp_path), torch_folder)
    assert not failed(checks)
    for name in ("opens", "runs", "finite outputs", "layers", WEIGHTS, PARITY, "what was read is remembered"):
        assert checks[name].passed is True, name
    assert "of 160" in checks[PARITY].detail


def swap_rows(network: Any) -> None:
    """Of two tokens that English prose does not have."""
    table = network.get_input_embeddings().weight.data
    table[[5, 6]] = table[[6, 5]]


def swap_projections(network: Any) -> None:
    one, other = (network.model.layers[place].mlp.up_proj.weight.data for place in (0, 1))
    kept = one.clone()
    one.copy_(other)
    other.copy_(kept)


def change_norm(network: Any) -> None:
    network.model.layers[1].input_layernorm.weight.data[0] *= 1.002


def turn_faster(network: Any) -> None:
    network.config.rope_theta = 500.0


@pytest.mark.parametrize(
    ("change", "caught"),
    [
        (swap_rows, {WEIGHTS}),
        (swap_projections, {"layers", PARITY}),
        (change_norm, {WEIGHTS}),
        (turn_faster, {PARITY}),
    ],
)
def test_a_package_of_another_model(
    change: Callable[[Any], None], caught: set[str], package: Path, torch_folder: Path, tmp_path: Path
) -> None:
    assert failed(checked(package, changed(torch_folder, tmp_path / "other", change))) == caught


def test_a_package_of_texts_against_a_model_of_images(package: Path, digits: Any) -> None:
    checks = checked(package, digits.torch("resnet").path)
    assert failed(checks) == {PARITY}
    assert "does not" in checks[PARITY].detail


def test_without_a_tokenizer_any_tokens_will_do(package: Path, torch_folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    loading.save(loading.load(torch_folder), bare)
    assert not failed(checked(package, bare))


def test_a_quantized_package(tales: Any, torch_folder: Path, tmp_path: Path) -> None:
    """Against the model whose integers it holds all is compared; against the float one it only has to be near."""
    pytest.importorskip("coremltools")
    quantized = tmp_path / "int4"
    quantized.mkdir()
    Int4Weights().quantize(tales.torch("qwen2"), tales.job(quantized))
    Coreml(context=96).export(tales.artifact(quantized, "torch"), tales.job(tmp_path / "file"))
    file = tmp_path / "file" / "model.mlpackage"
    checks = checked(file, quantized)
    assert not failed(checks)
    assert checks["layers"].passed is checks[WEIGHTS].passed is checks[PARITY].passed is True
    checks = checked(file, torch_folder)
    assert checks[WEIGHTS].passed is None
    assert "at least 0.7" in checks[PARITY].detail


# -- ONNX and GGUF


@pytest.mark.parametrize(("exporter", "name"), [(Onnx(), "model.onnx"), (Gguf(), "model.gguf")])
def test_other_formats(exporter: Any, name: str, tales: Any, torch_folder: Path, tmp_path: Path) -> None:
    if isinstance(exporter, Gguf):
        pytest.importorskip("llama_cpp")
    exporter.export(tales.torch("qwen2"), tales.job(tmp_path / "file"))
    for path in (tmp_path / "file", tmp_path / "file" / name):
        checks = checked(path, torch_folder)
        assert not failed(checks), checks
        assert checks[PARITY].passed is True
        assert checks["runs"].passed is True
    other = changed(torch_folder, tmp_path / "other", turn_faster)
    assert PARITY in failed(checked(tmp_path / "file", other))


def test_a_file_of_another_name(tales: Any, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    Gguf().export(tales.torch("qwen2"), tales.job(tmp_path / "file"))
    path = (tmp_path / "file" / "model.gguf").rename(tmp_path / "smol-q8.gguf")
    assert checked(path, None)["runs"].passed is True
