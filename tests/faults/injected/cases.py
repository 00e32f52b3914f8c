"""Clean cases: a model, the file made of it, and all that verification is given; each is built once and copied."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeforge.core.artifact import Artifact
from edgeforge.exporters.coreml import Coreml
from edgeforge.exporters.gguf import Gguf
from edgeforge.exporters.onnx import Onnx
from edgeforge.exporters.openvino import Openvino
from edgeforge.quantizers.gguf_k import GgufK
from edgeforge.quantizers.int4_weights import Int4Weights
from edgeforge.quantizers.int8_dynamic import Int8Dynamic
from edgeforge.quantizers.int8_openvino import Int8Openvino
from edgeforge.quantizers.int8_static import Int8Static
from edgeforge.quantizers.int8_weights import Int8Weights
from edgeforge.quantizers.smooth_quant import SmoothQuant
from edgeforge.stages.train import Train
from edgeforge.stages.verify import Verify

INT4, INT8 = Int4Weights(min_elements=64, block_size=8), Int8Weights(min_elements=64)

SCHEMES: dict[str, tuple[Any, Any]] = {
    "onnx-float": (Onnx(), None),
    "onnx-x86": (Onnx(), Int8Static(layout="x86")),
    "onnx-arm": (Onnx(), Int8Static(layout="arm")),
    "onnx-percentile": (Onnx(), Int8Static(layout="x86", calibration="percentile", percentile=99.9)),
    "onnx-tables4": (Onnx(), Int8Static(layout="x86", embeddings="int4")),
    "onnx-smooth": (Onnx(), SmoothQuant(layout="x86")),
    "onnx-dynamic": (Onnx(), Int8Dynamic()),
    "onnx-int4": (Onnx(), Int4Weights(min_elements=64)),
    "onnx-int8": (Onnx(), INT8),
    "coreml-float": (Coreml(), None),
    "coreml-flexible": (Coreml(length="flexible"), None),
    "coreml-int4": (Coreml(), INT4),
    "coreml-int8": (Coreml(), INT8),
    "coreml-palettes": (Coreml(), Int4Weights(min_elements=64, method="palettize", group_size=8)),
    "openvino-float": (Openvino(), None),
    "openvino-half": (Openvino(precision="float16"), None),
    "openvino-int8": (Openvino(), Int8Openvino(samples=60)),
    "openvino-weights4": (Openvino(), Int4Weights(min_elements=64)),
}

DECODER_SCHEMES: dict[str, tuple[Any, Any]] = {
    "gguf-float": (Gguf(), None),
    "gguf-int4": (Gguf(), Int4Weights()),
    "gguf-int8": (Gguf(), Int8Weights(block_size=32)),
    "gguf-q4_0": (Gguf(), GgufK(type="q4_0", importance=False)),
    "onnx-float": (Onnx(), None),
    "onnx-int4": (Onnx(), Int4Weights()),
    "coreml-float": (Coreml(context=64), None),
    "coreml-int4": (Coreml(context=64), Int4Weights()),
}
"""Of language models."""

CLEAN = (
    *(f"resnet-{scheme}" for scheme in SCHEMES if scheme not in ("onnx-tables4", "onnx-smooth", "coreml-flexible")),
    *(f"bert-{scheme}" for scheme in SCHEMES if scheme not in ("onnx-percentile", "coreml-palettes", "openvino-half")),
    *(f"colours-{scheme}" for scheme in ("onnx-float", "onnx-x86", "coreml-float")),
    "vit-onnx-x86",
    "vit-coreml-int4",
    "convnext-onnx-float",
    "roberta-coreml-flexible",
    *(f"llama-{scheme}" for scheme in DECODER_SCHEMES),
)
"""Every case that a fault is injected into, and some more; the families in `TRAINED` are trained, `colours` is a
resnet."""

TRAINED = {
    "resnet": Train(epochs=4, learning_rate=1e-2, keep="best"),
    "bert": Train(epochs=10, batch_size=32, learning_rate=3e-3, keep="best"),
    "colours": Train(epochs=4, learning_rate=1e-2, keep="best"),
    "llama": Train(epochs=8, batch_size=16, learning_rate=1e-2, keep="best"),
}
TEXTS = ("bert", "roberta")
BENCHES = {"colours": "colours", "llama": "tales", **dict.fromkeys(TEXTS, "mails")}
"""Whose data and tiny models a family uses; `digits` where it is not said."""


def scheme_of(name: str) -> tuple[Any, Any]:
    """The exporter and the quantizer of a case."""
    family, scheme = name.split("-", 1)
    found: tuple[Any, Any] = (DECODER_SCHEMES if family == "llama" else SCHEMES)[scheme]
    return found


def family_of(name: str) -> str:
    return "resnet" if name == "colours" else name


@dataclass
class Case:
    """What verification is given. `folder` is a copy that a fault may change; so is `own(role)`.

    Digests are computed anew when it is verified, as if the damage had been there before sealing.
    """

    bench: Any
    name: str
    inputs: dict[str, Artifact]
    root: Path
    _owned: dict[str, Path] = field(default_factory=dict)

    @property
    def format(self) -> str:
        return self.inputs["file"].format

    @property
    def folder(self) -> Path:
        return self.own("file")

    def own(self, role: str) -> Path:
        """The folder of an input, which may be changed."""
        if role not in self._owned:
            self._owned[role] = self.root / role
            shutil.copytree(self.inputs[role].path, self._owned[role])
        return self._owned[role]

    def put(self, role: str, artifact: Artifact) -> None:
        """Another artifact in the place of an input."""
        self._owned.pop(role, None)
        self.inputs[role] = artifact

    def copy(self, root: Path) -> Case:
        return Case(self.bench, self.name, dict(self.inputs), root)

    def verify(self) -> Mapping[str, Any]:
        for role, folder in self._owned.items():
            before = self.inputs[role]
            self.inputs[role] = replace(self.bench.artifact(folder, before.format, before.facts), key=before.key)
        facts = Verify().run(self.inputs, self.bench.job(self.root / "verify"))
        assert json.loads(json.dumps(facts, allow_nan=False)) == json.loads(json.dumps(facts))
        return facts

    def job(self, name: str) -> Any:
        return self.bench.job(self.root / name)


def caught_by(facts: Mapping[str, Any]) -> list[str]:
    """Names of what failed."""
    names = [check["name"] for check in facts["checks"] if check["passed"] is False]
    return [*names, "parity"] if facts["parity"]["passed"] is False else names


class Cases:
    """Builds clean cases, each once."""

    def __init__(self, root: Path, digits: Any, mails: Any, tales: Any) -> None:
        """`digits`, `mails`, `tales`: the benches of tests/conftest.py, whose classes make new ones here."""
        self._root = root
        self._kinds = {"digits": type(digits), "mails": type(mails), "tales": type(tales)}
        self._benches: dict[str, Any] = {}

    @functools.cache  # noqa: B019  (lives as long as the session)
    def clean(self, name: str) -> Case:
        """``<family>-<format>-<scheme>``."""
        family = name.split("-")[0]
        exporter, quantizer = scheme_of(name)
        bench, folder = self.bench(family), self._root / name
        model = self.model(family)
        inputs = {"model": model, "reference": model}
        if quantizer is not None and "torch" in quantizer.accepts:
            inputs["reference"] = self.quantized(family, quantizer)
        inputs["file"] = self._file(family, exporter, inputs["reference"])
        if quantizer is not None and "torch" not in quantizer.accepts:
            inputs["unquantized"] = inputs["file"]
            facts = quantizer.quantize(inputs["file"], bench.job(folder))
            inputs["file"] = bench.artifact(folder, inputs["file"].format, {"quantization": facts})
        return Case(bench, name, inputs, folder)

    def bench(self, family: str) -> Any:
        """The data and models of a family, apart from those that other tests use."""
        name = BENCHES.get(family, "digits")
        if name not in self._benches:
            root = self._root / name
            root.mkdir()
            kind = self._kinds.get(name, self._kinds["digits"])
            self._benches[name] = colours_of(kind, root) if name == "colours" else kind(root)
        return self._benches[name]

    def model(self, family: str) -> Artifact:
        """The torch model, trained where it is one of `TRAINED`, with the facts that its stage recorded."""
        bench = self.bench(family)
        name = family_of(family)
        folder = self._root / f"{family}.trained"
        if family in TRAINED and not folder.exists():
            start = self._start(bench, name)
            facts = TRAINED[family].run({"model": start}, bench.job(folder))
            bench.made[f"{name}.torch"] = bench.artifact(folder, "torch", facts)
        made: Artifact = bench.torch(name)
        return made

    def _start(self, bench: Any, name: str) -> Artifact:
        """What training begins with. An encoder's initial weights are so small that nothing in it matters: larger."""
        import torch

        from edgeforge.models import loading

        start: Artifact = bench.torch(name)
        if name not in TEXTS:
            return start
        network = loading.load(start.path)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for parameter in network.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.xavier_normal_(parameter)
        folder = self._root / f"{name}.start"
        loading.save(network, folder, tokenizer_from=start.path)
        started: Artifact = bench.artifact(folder, "torch")
        return started

    def quantized(self, family: str, quantizer: Any) -> Artifact:
        name = f"{family}.{quantizer.kind}.{getattr(quantizer, 'method', '')}.{quantizer.block_size}"
        return self._made(family, name, "torch", lambda job: quantizer.quantize(self.model(family), job))

    def _file(self, family: str, exporter: Any, model: Artifact) -> Artifact:
        choices = "".join(str(value) for value in exporter.model_dump().values())
        name = f"{family}.{model.path.name}.{choices}"
        return self._made(family, name, exporter.kind, lambda job: exporter.export(model, job))

    def _made(self, family: str, name: str, format: str, make: Callable[[Any], Any]) -> Artifact:
        bench = self.bench(family)
        if name not in bench.made:
            folder = self._root / f"made.{name}"
            facts = make(bench.job(folder))
            bench.made[name] = bench.artifact(folder, format, facts)
        made: Artifact = bench.made[name]
        return made


def colours_of(kind: type, root: Path) -> Any:
    """Digits in three channels that differ, each normalised in its own way."""
    from sklearn.datasets import load_digits

    from edgeforge.data.npz import Npz
    from edgeforge.tasks.image_classification import ImageClassification, Normalize

    digits = load_digits()
    gray = (digits.images * 15).astype(np.uint8)
    images = np.stack([gray, 255 - gray.transpose(0, 2, 1), np.roll(gray // 2, 3, axis=2)], axis=-1)
    labels = digits.target.astype(np.int64)
    path = root / "colours.npz"
    np.savez(path, x_train=images[:1400], y_train=labels[:1400], x_test=images[1400:], y_test=labels[1400:])
    normalize = Normalize(mean=(0.2, 0.5, 0.35), std=(0.2, 0.4, 0.3))
    task = ImageClassification(data=Npz(path=str(path)), normalize=normalize)

    class Colours(kind):  # type: ignore[misc, valid-type]
        def make_task(self) -> Any:
            return task

    return Colours(root)
