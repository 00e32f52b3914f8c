"""Faults of the chain: artifacts before the written file, everything after them made as usual."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from injected.cases import SCHEMES, Case, scheme_of
from injected.editing import edit_json, edit_tensors
from injected.registry import fault

from edgeforge.core.artifact import MANIFEST
from edgeforge.exporters.onnx import Onnx
from edgeforge.models import quantized_weights
from edgeforge.store import Store

IMAGES, TEXTS, X86, INT4 = "resnet-onnx-float", "bert-onnx-float", "resnet-onnx-x86", "resnet-onnx-int4"
COREML, COREML4, GGUF4 = "resnet-coreml-float", "resnet-coreml-int4", "llama-gguf-int4"


def _between(case: Case, share: float) -> None:
    """Put the file made of a model that is `share` of the way back to where training began."""
    start = case.bench.root / "resnet.torch"
    start_tensors = _tensors(start)

    def mix(tensors: dict[str, np.ndarray]) -> None:
        for name, array in tensors.items():
            if array.dtype.kind == "f":
                tensors[name] = ((1 - share) * array + share * start_tensors[name]).astype(array.dtype)

    folder = case.root / "stale"
    shutil.copytree(case.inputs["model"].path, folder)
    edit_tensors(folder / "model.safetensors", mix)


def _tensors(folder: Any) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    found: dict[str, np.ndarray] = load_file(folder / "model.safetensors")
    return found


@fault("stale cache", IMAGES, COREML, sizes=(1.0, 0.01), unit="share of the way back to the start of training")
def file_of_an_earlier_model(case: Case, size: float) -> None:
    """The store gives the file of an earlier state of the model."""
    _between(case, size)
    folder = case.root / "stale.file"
    exporter = SCHEMES[case.name.split("-", 1)[1]][0]
    made = case.bench.artifact(case.root / "stale", "torch")
    exporter.export(made, case.bench.job(folder))
    case.put("file", case.bench.artifact(folder, case.format))


@fault("stale cache", X86, sizes=(1.0, 0.01), unit="share of the way back to the start of training", quick=True)
def parent_of_an_earlier_model(case: Case, size: float) -> None:
    """The float file that was quantized is that of an earlier state: the quantized one follows it to the last bit."""
    _between(case, size)
    parent, folder = case.root / "stale.file", case.root / "stale.quantized"
    Onnx().export(case.bench.artifact(case.root / "stale", "torch"), case.bench.job(parent))
    case.put("unquantized", case.bench.artifact(parent, "onnx"))
    facts = SCHEMES["onnx-x86"][1].quantize(case.inputs["unquantized"], case.bench.job(folder))
    case.put("file", case.bench.artifact(folder, "onnx", {"quantization": facts}))


@fault("stale cache", INT4, COREML4, sizes=(1.0, 0.05), unit="share of the way back to the start of training")
def integers_of_an_earlier_model(case: Case, size: float) -> None:
    """The integers are those of an earlier state of the model, and the file holds just them."""
    _between(case, size)
    exporter, quantizer = SCHEMES[case.name.split("-", 1)[1]]
    reference, folder = case.root / "stale.reference", case.root / "stale.file"
    quantizer.quantize(case.bench.artifact(case.root / "stale", "torch"), case.bench.job(reference))
    case.put("reference", case.bench.artifact(reference, "torch"))
    exporter.export(case.inputs["reference"], case.bench.job(folder))
    case.put("file", case.bench.artifact(folder, case.format))


@fault("wrong integer", INT4, GGUF4, sizes=(4, 1), unit="steps of one 4-bit integer", quick=True)
def wrong_integer_of_the_quantizer(case: Case, size: int) -> None:
    """The quantizer chose one integer wrongly: integers, weights and file all agree on it."""
    _requantized(case, lambda weight: _moved(weight, size))


@fault("wrong scale", INT4, sizes=(4.0, 1.5), unit="factor of one scale")
def wrong_scale_of_the_quantizer(case: Case, size: float) -> None:
    """The quantizer chose one scale wrongly: all agree on it."""
    _requantized(case, lambda weight: weight.scales.reshape(-1).__setitem__(0, weight.scales.reshape(-1)[0] * size))


def _moved(weight: Any, size: int) -> None:
    flat = weight.integers.reshape(-1)
    flat[0] += size if flat[0] < 3 else -size


def _requantized(case: Case, change: Any) -> None:
    """A changed quantized weight, consistently in both files of the reference, exported anew."""
    reference = case.own("reference")
    quantized = quantized_weights.read(reference)
    assert quantized is not None
    name, weight = sorted(quantized.weights.items())[2]
    change(weight)
    quantized_weights.write(quantized, reference)
    edit_tensors(reference / "model.safetensors", lambda tensors: tensors.update({name: weight.dequantize()}))
    case.put("reference", case.bench.artifact(reference, "torch"))
    folder = case.root / "exported"
    scheme_of(case.name)[0].export(case.inputs["reference"], case.bench.job(folder))
    case.put("file", case.bench.artifact(folder, case.format))


# -- models that are not the ones that were measured: file and model agree, and both are wrong


def _exported(case: Case) -> None:
    """The file made of the damaged model."""
    model = case.own("model")
    before = case.inputs["model"]
    made = case.bench.artifact(model, "torch", before.facts)
    for role in ("model", "reference"):
        case.put(role, made)
    folder = case.root / "exported"
    Onnx().export(made, case.bench.job(folder))
    case.put("file", case.bench.artifact(folder, "onnx"))


@fault("batch normalization", IMAGES, sizes=(1.0,), unit="share of the statistics that is reset", quick=True)
def statistics_reset(case: Case, size: float) -> None:
    """Running statistics were reset and never found again."""

    def reset(tensors: dict[str, np.ndarray]) -> None:
        for name, array in tensors.items():
            if name.endswith("running_mean"):
                tensors[name] = array * np.float32(1 - size)
            if name.endswith("running_var"):
                tensors[name] = (array * (1 - size) + size).astype(array.dtype)

    edit_tensors(case.own("model") / "model.safetensors", reset)
    _exported(case)


@fault("labels", IMAGES, TEXTS, sizes=("all",), unit="")
def shuffled_head(case: Case, _: str) -> None:
    """Labels were shuffled when the model was trained: its classifier's rows stand for others."""

    def shuffle(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if name.startswith("classifier")]:
            tensors[name] = np.roll(tensors[name], 1, axis=0)

    edit_tensors(case.own("model") / "model.safetensors", shuffle)
    _exported(case)


@fault("embedding", TEXTS, sizes=("all",), unit="")
def model_of_another_vocabulary(case: Case, _: str) -> None:
    """The model was trained with another tokenizer than it travels with."""

    def shuffle(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if name.endswith("word_embeddings.weight")]:
            tensors[name] = np.concatenate([tensors[name][:5], tensors[name][5:][::-1]])

    edit_tensors(case.own("model") / "model.safetensors", shuffle)
    _exported(case)


@fault("preprocessing", IMAGES)
def model_of_other_normalisation(case: Case, _: None) -> None:
    """The model was trained on pixels that were normalised otherwise: its stem expects ten times as large ones."""

    def scale(tensors: dict[str, np.ndarray]) -> None:
        name = "resnet.embedder.embedder.convolution.weight"
        tensors[name] = tensors[name] / 10

    edit_tensors(case.own("model") / "model.safetensors", scale)
    _exported(case)


@fault("stale cache", IMAGES)
def model_that_was_never_trained(case: Case, _: None) -> None:
    """The chain's model is the one that training began with."""
    start = _tensors(case.bench.root / "resnet.torch")
    edit_tensors(case.own("model") / "model.safetensors", lambda tensors: tensors.update(start))
    _exported(case)


@fault("recorded facts", IMAGES)
def other_parameter_count(case: Case, _: None) -> None:
    """The stage counted the parameters of another model."""
    model = case.inputs["model"]
    case.put("model", case.bench.artifact(model.path, "torch", {**model.facts, "params": model.facts["params"] + 1}))


# -- the store itself: the only faults that digests find


@fault("store", IMAGES, sizes=("byte", "extra file", "lost file"))
def damaged_in_the_store(case: Case, size: str) -> list[str]:
    """A sealed artifact was changed on disk: it is set aside and made again, and never used."""
    store, sealed = _sealed(case)
    path = sealed / "model.onnx"
    if size == "byte":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    elif size == "extra file":
        (sealed / "more.bin").write_bytes(b"x")
    else:
        (sealed / "config.json").unlink()
    return ["digest when opened"] if store.open("k" * 64) is None else []


@fault("store", IMAGES)
def manifest_of_another_artifact(case: Case, _: None) -> list[str]:
    """A sealed artifact carries another one's manifest."""
    store, sealed = _sealed(case)
    edit_json(sealed / MANIFEST, lambda manifest: manifest.update(key="0" * 64))
    return ["digest when opened"] if store.open("k" * 64) is None else []


def _sealed(case: Case) -> tuple[Store, Path]:
    store = Store(case.root / "store")
    draft = store.draft("k" * 64, "export", parents={}, recipe={})
    for name in case.inputs["file"].files:
        (draft.path / name).write_bytes((case.inputs["file"].path / name).read_bytes())
    sealed = store.seal(draft, "onnx", {}, 0.0)
    assert store.open("k" * 64) is not None
    return store, sealed.path
