"""How weights are rounded to four bits: to the nearest, by GPTQ, by HQQ and with AWQ's scales, on real models.

Each model is quantized in torch by `int4_weights` (block 32, symmetric, calibrated on training samples) and compared
with itself in float on test samples: the Kullback-Leibler divergence of its answers (nats, per sample or per token) and
the mean squared error of its logits (less their mean, which changes no answer), with a bootstrap interval over samples
(windows of tokens) of the difference to `nearest`. Files of all formats hold these integers, so this is what every
runtime gets. Rows are raw results in rows/, README.md is drawn from them after each.

    python -m benchmarks.rounding.run --mails data/spam_assassin --mail-model data/spam-bench/teacher-mail-seed0
    python -m benchmarks.rounding.run --texts data/state_of_the_union --gguf data/smollm2_135m.gguf
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from benchmarks.measuring import write_row
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.core.stage import Job
from edgeforge.core.task import NO_LABEL, Task, model_inputs
from edgeforge.environment import describe
from edgeforge.models import loading
from edgeforge.models.gguf import Gguf
from edgeforge.pipeline import parse
from edgeforge.quantizers.int4_weights import Int4Weights
from edgeforge.stages.initialize import Initialize

ROWS = Path(__file__).parent / "rows"
README = ROWS.parent / "README.md"
METHODS: dict[str, dict[str, Any]] = {
    "nearest": {},
    "gptq": {"rounding": "gptq"},
    "hqq": {"rounding": "hqq"},
    "nearest, awq": {"awq": True},
}
RESAMPLES = 2000


class Silent:
    """Progress that says nothing but warnings."""

    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        print(f"warning: {message}", flush=True)


def task_of(**said: Any) -> Task:
    """A task as a pipeline file says it."""
    from edgeforge.core.document import to_yaml

    source = {"name": "rounding", "task": said, "model": {"kind": "pretrained", "path": "."}}
    return parse(to_yaml(source).encode(), "rounding").task


def answers(folder: Path, task: Task, count: int) -> list[torch.Tensor]:
    """Log-probabilities for the first `count` test samples: (labels,) each, or (tokens, vocabulary)."""
    data, model, found = task.open(folder), loading.load(folder).eval(), list[torch.Tensor]()
    with torch.inference_mode():
        for row in range(min(count, data.size("test"))):
            batch = data.batch("test", [row])
            logits = model(**model_inputs(batch)).logits[0].float().log_softmax(-1)
            found.append(logits[batch["labels"][0] != NO_LABEL] if logits.dim() == 2 else logits)
    return found


def divergences(clean: list[torch.Tensor], moved: list[torch.Tensor]) -> np.ndarray:
    """KL(clean || moved) in nats, the mean of each sample's tokens."""
    pairs = zip(clean, moved, strict=True)
    return np.array([float((one.exp() * (one - other)).sum(-1).mean()) for one, other in pairs])


def logit_errors(clean: list[torch.Tensor], moved: list[torch.Tensor]) -> np.ndarray:
    """Mean squared difference of centred logits, the mean of each sample's tokens."""
    found = []
    for one, other in zip(clean, moved, strict=True):
        apart = one - other
        found.append(float((apart - apart.mean(-1, keepdim=True)).square().mean()))
    return np.array(found)


def summary(moved: np.ndarray, nearest: np.ndarray) -> dict[str, Any]:
    """The mean, and how much less it is than that of `nearest`, with a paired bootstrap interval."""
    drawn = np.random.RandomState(0).randint(len(moved), size=(RESAMPLES, len(moved)))
    low, high = np.percentile((moved - nearest)[drawn].mean(axis=1), [2.5, 97.5])
    apart = float((moved - nearest).mean())
    return {"mean": float(moved.mean()), "less_than_nearest": apart, "ci95": [float(low), float(high)]}


def race(name: str, folder: Path, task: Task, *, samples: int, count: int) -> None:
    """Every method on one model."""
    clean = answers(folder, task, count)
    found: dict[str, Any] = {}
    nearest: dict[str, np.ndarray] = {}
    for method, options in METHODS.items():
        with tempfile.TemporaryDirectory() as scratch:
            quantizer = Int4Weights(samples=samples, **options)
            model = Artifact("", "", "torch", folder, "", {}, {}, {})
            job = Job(task, Path(scratch), 0, functools.cache(Accelerator), Silent(), folder)
            began = time.monotonic()
            try:
                quantizer.quantize(model, replace(job, folder=Path(scratch)))
            except ModelError as error:
                found[method] = {"refused": error.what}
                continue
            seconds = time.monotonic() - began
            moved = answers(Path(scratch), task, count)
        own = {"kld": divergences(clean, moved), "logit_error": logit_errors(clean, moved)}
        if method == "nearest":
            nearest = own
        found[method] = {key: summary(values, nearest[key]) for key, values in own.items()}
        found[method]["seconds"] = round(seconds, 1)
        print(name, method, found[method], flush=True)
    result = {"model": name, "calibration_samples": samples, "test_samples": len(clean), "methods": found}
    write_row(ROWS / f"{name}.json", {**result, "environment": describe()})
    README.write_text("\n".join(table()) + "\n", encoding="utf-8")


def table() -> Iterator[str]:
    """README.md, from the rows that are there."""
    yield from ("# Rounding to four bits", "", "Written by `run.py` from the raw rows in `rows/`; do not edit.", "")
    yield (
        "`int4_weights`, block 32, symmetric, calibrated on training samples; the model is compared with itself in "
        "float on test samples. In brackets the paired 95 % interval (bootstrap) of the difference to `nearest`."
    )
    for path in sorted(ROWS.glob("*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        yield from ("", f"## {row['model']}, {row['test_samples']} test samples", "")
        yield "| method | KLD, nats | against nearest | squared logit error | against nearest | seconds |"
        yield "|---|---|---|---|---|---|"
        for method, own in row["methods"].items():
            if "refused" in own:
                yield f"| {method} | refused: {own['refused']} | | | | |"
                continue
            cells = [cell for key in ("kld", "logit_error") for cell in shown(own.get(key), method)]
            yield f"| {method} | {' | '.join(cells)} | {own['seconds']:.0f} |"


def shown(found: dict[str, Any] | None, method: str) -> tuple[str, str]:
    """The mean, and the difference to `nearest`; logit errors came later than the first rows."""
    if found is None:
        return "not measured", ""
    less, (low, high) = found["less_than_nearest"], found["ci95"]
    return f"{found['mean']:.3g}", "" if method == "nearest" else f"{less:.2g} [{low:.2g}, {high:.2g}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mails", type=Path, help="folder of `edgeforge fetch spam-assassin`")
    parser.add_argument(
        "--mail-model", type=Path, help="a MiniLM fine-tuned on them, such as a teacher of benchmarks/spam"
    )
    parser.add_argument("--texts", type=Path, help="folder of `edgeforge fetch state-of-the-union`")
    parser.add_argument("--gguf", type=Path, help="file of `edgeforge fetch smollm2-135m`")
    options = parser.parse_args()
    parts = {"train": "train.jsonl", "test": "test.jsonl"}
    if options.mails:
        files = {part: str(options.mails / name) for part, name in parts.items()}
        data = {"kind": "jsonl", **files}
        mails = task_of(kind="text_classification", data=data, max_length=128, tokenizer=str(options.mail_model))
        race("minilm-mails", options.mail_model, mails, samples=128, count=1177)
    if options.texts:
        files = {part: str(options.texts / name) for part, name in parts.items()}
        with tempfile.TemporaryDirectory() as scratch:
            model = Gguf(path=str(options.gguf))
            texts = task_of(kind="causal_lm", data={"kind": "jsonl", **files}, max_length=256, evaluation_windows=24)
            texts = texts.completed(model.folder())
            job = Job(texts, Path(scratch), 0, functools.cache(Accelerator), Silent())
            Initialize(kind="initialize", model=model).run({}, job)
            race("smollm2-presidents", Path(scratch), texts, samples=32, count=24)


if __name__ == "__main__":
    main()
