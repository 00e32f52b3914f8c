"""SmolLM2-135M in every type of llama.cpp, with and without importance, and in mixes chosen by sensitivity.

Every row is one GGUF file, made from the same float16 file and measured against it on the same windows: addresses on
the State of the Union of years that no calibration text is from, and Moby Dick, of which nothing is. Its raw result is
rows/quantization-<row>.json; a row that is there is not made again.

A mix `mix-<type>` may take as many bytes as the fixed type of that name, measured with the same importance.

The model lies on the grid of Q4_1, the type of the file it comes from, and of Q5_1, which has all of its steps: tensors
that llama.cpp would give one of these get Q4_0 or Q5_0 instead, in every row (`replaced` lists them).

    edgeforge fetch smollm2-135m --out data && edgeforge fetch state-of-the-union --out data
    edgeforge fetch moby-dick --out data
    python -m benchmarks.smollm2.quantization --data data --work data/smollm2-bench
    python -m benchmarks.smollm2.quantization_table
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.measuring import read_row, write_row
from edgeforge import gguf_file
from edgeforge.core.artifact import Artifact, digest_files, hash_folder
from edgeforge.core.stage import Job
from edgeforge.environment import describe
from edgeforge.exporters.gguf import Gguf as Exporter
from edgeforge.gguf_file import MODEL, GgufFile
from edgeforge.models.gguf import Gguf
from edgeforge.progress import TerminalWatcher
from edgeforge.quantizers import _importance as importance_file
from edgeforge.quantizers._allocation import Choice
from edgeforge.quantizers._gguf_mix import Mixer
from edgeforge.quantizers._gguf_types import BARRED, mixed_with
from edgeforge.quantizers.gguf_k import GgufK
from edgeforge.runtimes._llama.divergence import divergence, log_softmax
from edgeforge.runtimes._llama.quantization import Recipe, planned_types, quantize
from edgeforge.runtimes._llama.session import LlamaCppSession
from edgeforge.stages.importance import Importance
from edgeforge.stages.initialize import Initialize
from edgeforge.tasks.causal_lm import CausalLm

ROWS = Path(__file__).parent / "rows"
SEED = 0
WINDOW, WINDOWS = 512, 16
TOKENS = 16384
"""Of calibration text."""

TYPES = (
    "q8_0",
    "q6_k",
    "q5_k_m",
    "q5_k_s",
    "q5_0",
    "q4_k_m",
    "q4_k_s",
    "q4_0",
    "iq4_nl",
    "iq4_xs",
    "q3_k_l",
    "q3_k_m",
    "q3_k_s",
    "iq3_m",
    "iq3_s",
    "q2_k",
)
MOST_BITS = 6.6
"""Fixed types up to so many bits per weight have a mix of no more bytes to be compared with."""

REPLACED = {"q4_1": "q4_0", "q5_1": "q5_0"}
DOMAINS = {"in": "state_of_the_union/test.jsonl", "out": "moby_dick/moby_dick.jsonl"}
CALIBRATION = "state_of_the_union/train.jsonl"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="what was fetched")
    parser.add_argument("--work", type=Path, required=True, help="models and answers; may be removed afterwards")
    parser.add_argument("--only", nargs="+", help="rows, such as q4_0 q4_0-plain mix-q4_0")
    return parser.parse_args()


def names() -> Iterator[str]:
    """Every row, fixed types before the mixes that are compared with them."""
    for word in TYPES:
        yield f"{word}-plain"
        yield word
    yield from (f"mix-{word}" for word in TYPES)


def path_of(name: str) -> Path:
    """Where a row's raw result is."""
    return ROWS / f"quantization-{name}.json"


@dataclass
class Bench:
    """The float model, its importance and its answers, each made once and kept in `work`."""

    data: Path
    work: Path

    def task(self, domain: str) -> CausalLm:
        train, test = (str(self.data / name) for name in (CALIBRATION, DOMAINS[domain]))
        source = {"kind": "jsonl", "train": train, "test": test}
        fields = {"kind": "causal_lm", "data": source, "max_length": WINDOW, "evaluation_windows": WINDOWS}
        return CausalLm.model_validate(fields).completed(self.source.folder())

    @cached_property
    def source(self) -> Gguf:
        return Gguf(path=str(self.data / "smollm2_135m.gguf"))

    def job(self, folder: Path, model: Path | None = None) -> Job:
        folder.mkdir(parents=True, exist_ok=True)
        return Job(self.task("in"), folder, SEED, _accelerator, TerminalWatcher(Console()), model)

    @cached_property
    def torch(self) -> Artifact:
        return self._made("torch", "torch", lambda job: Initialize(model=self.source).run({}, job))

    @cached_property
    def floats(self) -> Artifact:
        return self._made("f16", "gguf", lambda job: Exporter().export(self.torch, job))

    @cached_property
    def measured(self) -> Artifact:
        torch = self.torch
        stage = Importance(tokens=TOKENS)
        return self._made("importance", "measurements", lambda job: stage.run({"model": torch}, job), model=torch.path)

    def _made(self, name: str, form: str, make: Any, model: Path | None = None) -> Artifact:
        """A folder of `work`, whole once its facts are written."""
        folder, facts = self.work / name, self.work / f"{name}.json"
        if not facts.is_file():
            facts.write_text(json.dumps(dict(make(self.job(folder, model)))), encoding="utf-8")
        files = hash_folder(folder)
        said = json.loads(facts.read_text(encoding="utf-8"))
        return Artifact(name, "", form, folder, digest_files(files), files, {}, {}, said)

    @cached_property
    def mixer(self) -> Mixer:
        importance = importance_file.read(self.measured.path)
        job = self.job(self.work / "scratch", self.floats.path)
        candidates = GgufK.model_fields["candidates"].default
        return Mixer(gguf_file.read(self.floats.path / MODEL), importance, job, candidates=candidates, own={})

    @cached_property
    def options(self) -> list[list[Choice]]:
        """What each type of each tensor costs."""
        path = self.work / "costs.json"
        if not path.is_file():
            found = self.mixer.options(self.work / "scratch")
            path.write_text(json.dumps([[vars(choice) for choice in own] for own in found]), encoding="utf-8")
        return [[Choice(**choice) for choice in own] for own in json.loads(path.read_text(encoding="utf-8"))]

    def windows(self, domain: str) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
        """Inputs, (1, WINDOW), and what follows each position but the last."""
        data = self.task(domain).open(self.floats.path)
        batches = [data.batch("test", [row]) for row in range(data.size("test"))]
        return [
            (
                {name: batch[name].numpy() for name in ("input_ids", "attention_mask")},
                batch["input_ids"][0, 1:].numpy(),
            )
            for batch in batches
        ]

    def reference(self, domain: str) -> np.ndarray:
        """The float16 file's logits on a domain's windows, float32, (windows, WINDOW, vocabulary), from the disk."""
        path = self.work / f"reference-{domain}.npy"
        if not path.is_file():
            partial = path.with_suffix(".partial.npy")
            session = LlamaCppSession(self.floats.path / MODEL)
            windows = self.windows(domain)
            shape = (len(windows), WINDOW, session.model.vocabulary_size)
            kept: Any = np.lib.format.open_memmap(partial, "w+", np.float32, shape)  # type: ignore[no-untyped-call]
            for index, (inputs, _) in enumerate(windows):
                kept[index] = session.run(inputs)[0]
            kept.flush()
            session.close()
            partial.replace(path)
        found: np.ndarray = np.load(path, mmap_mode="r")
        return found


def _accelerator() -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=True)


# -- rows


def make(name: str, bench: Bench) -> None:
    """One row, if it is not there; a mix only where its fixed type is small enough, which is made first."""
    if path_of(name).is_file():
        return
    began = time.monotonic()
    target = bench.work / "scratch" / f"{name}.gguf"
    target.parent.mkdir(parents=True, exist_ok=True)
    more: dict[str, Any] = {}
    if name.startswith("mix-"):
        fixed = name.removeprefix("mix-")
        make(fixed, bench)
        row = read_row(path_of(fixed))
        assert row is not None
        if row["bits_per_weight"] > MOST_BITS:
            return
        recipe, more["predicted_kld"] = bench.mixer.recipe(bench.options, row["tensor_bytes"])
        file = quantize(bench.floats.path / MODEL, target, recipe)
        more["fixed"] = fixed
    else:
        file, more["replaced"] = fixed_type(name, bench, target)
    seconds = round(time.monotonic() - began, 1)
    result = {"row": name, "seed": SEED, "seconds_to_quantize": seconds, **facts(file), **more}
    result["domains"] = {domain: evaluated(file.path, domain, bench) for domain in DOMAINS}
    file.path.unlink()
    calibration = {"tokens": bench.measured.facts["tokens"], "windows": WINDOWS, "window": WINDOW}
    write_row(path_of(name), {**result, **calibration, "environment": describe()})


def fixed_type(name: str, bench: Bench, target: Path) -> tuple[GgufFile, dict[str, str]]:
    """A file of llama.cpp's own mix, and which tensors had to be of another type than it would have given them."""
    word = name.removesuffix("-plain")
    measured = {} if name.endswith("-plain") else importance_file.read(bench.measured.path).inputs
    floats, recipe = gguf_file.read(bench.floats.path / MODEL), Recipe(word, {}, measured)
    replaced = {name: REPLACED[own] for name, own in planned_types(floats, recipe).items() if own in BARRED}
    return quantize(floats.path, target, mixed_with(floats, replaced, recipe)), replaced


def facts(file: GgufFile) -> dict[str, Any]:
    return {
        "bytes": file.path.stat().st_size,
        "tensor_bytes": sum(tensor.size_bytes for tensor in file.tensors.values()),
        "bits_per_weight": file.bits_per_weight(),
        "types": dict(file.types()),
    }


def evaluated(path: Path, domain: str, bench: Bench) -> Mapping[str, Any]:
    """By window: mean negative log-likelihood and divergence (nats per token), share of same likeliest tokens."""
    session = LlamaCppSession(path)
    found: dict[str, list[float]] = {"nll": [], "kld": [], "top1": [], "reference_nll": []}
    for (inputs, labels), expected in zip(bench.windows(domain), bench.reference(domain), strict=True):
        logits, places = session.run(inputs)[0], np.arange(len(labels))
        found["nll"].append(-float(log_softmax(logits[:-1])[places, labels].mean()))
        found["reference_nll"].append(-float(log_softmax(expected[:-1])[places, labels].mean()))
        found["kld"].append(float(divergence(expected, logits).mean()))
        found["top1"].append(float((logits.argmax(axis=1) == expected.argmax(axis=1)).mean()))
    session.close()
    return found


def main() -> None:
    options = arguments()
    bench = Bench(options.data.absolute(), options.work.absolute())
    for name in options.only or names():
        make(name, bench)


if __name__ == "__main__":
    main()
