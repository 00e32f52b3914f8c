"""The quickstart's files and a MiniLM's on emulated Arm processors: what they answer there, and what they cost.

Every file answers the same test samples on this machine and on each processor; the instructions of a call are counted
in three processes. A raw result is rows/<model>-<file>-<processor>.json; one that is there is not made again, unless it
has fewer samples. The MiniLM is one of benchmarks/spam's fine-tuned teachers. table.py draws the tables. Nothing here
depends on how busy the machine is.

    apt-get install qemu-user gcc libc6-dev gcc-aarch64-linux-gnu libc6-dev-arm64-cross libstdc++6-arm64-cross
    edgeforge fetch android-runner
    python -m benchmarks.emulated_arm.run --work data/emulated-arm --only quickstart
    python -m benchmarks.emulated_arm.run --work data/emulated-arm --only minilm \\
        --mails data --text-model data/spam-bench/teacher-mail-seed0
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.measuring import read_row, run_pipeline, write_row
from benchmarks.spam.run import task as mail_task
from edgeforge.core.task import Task, TaskData, model_inputs
from edgeforge.device import profile
from edgeforge.links import Link, Subject, Workload, link_of
from edgeforge.pipeline import Pipeline, parse
from edgeforge.verification._recheck import AGREEMENT, FLOAT_MOVES, QUANTIZED_MOVES

HERE = Path(__file__).parent
ROWS = HERE / "rows"
QUICKSTART = HERE.parent.parent / "pipelines" / "quickstart.yaml"
MODELS = ("quickstart", "minilm")
FLOAT = "float32"
FILES = (FLOAT, "int8", "int4")
PROCESSORS = ("emulated_a76", "emulated_i8mm")
PROCESSES, CALLS = 3, 4
"""In how many processes a call's instructions are counted, and over how many calls in each."""

UNQUANTIZED = {"name": FLOAT, "export": "onnx", "devices": []}
INT4 = {"name": "int4", "quantize": {"kind": "int4_weights", "block_size": 32}, "export": "onnx", "devices": []}
STATIC = {"kind": "int8_static", "samples": 256, "layout": "arm"}
INT8 = {
    "quickstart": {"name": "int8", "quantize": STATIC, "export": "onnx", "devices": []},
    "minilm": {"name": "int8", "quantize": "int8_dynamic", "export": "onnx", "devices": []},
}


class Printed:
    """Progress of what takes minutes."""

    def update(self, done: int, total: int, note: str = "") -> None:
        print(f"\r  {note} {done}/{total}   ", end="", flush=True)

    def warn(self, message: str) -> None:
        print(f"\n  {message}")


def source(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """The pipeline file that makes a model's files: the quickstart's chain, or a fine-tuned MiniLM as it is."""
    if model == "quickstart":
        known = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
        del known["budgets"]
    else:
        if options.text_model is None or options.mails is None:
            raise SystemExit("the MiniLM needs --mails and --text-model: see the top of run.py")
        model_of = {"kind": "pretrained", "path": str(options.text_model)}
        known = {"task": mail_task(options.mails), "model": model_of, "seed": 0}
    return {**known, "name": model, "targets": [UNQUANTIZED, INT8[model], INT4]}


def saved(path: Path, data: TaskData, count: int) -> torch.Tensor:
    """The first test samples as a file of inputs; their labels."""
    batch = data.batch("test", range(count))
    np.savez(path, **{name: value.numpy() for name, value in model_inputs(batch).items()})  # type: ignore[arg-type]
    labels: torch.Tensor = batch["labels"]
    return labels


def counted(link: Link, subject: Subject, inputs: Path) -> dict[str, Any]:
    """Instructions of a call, by process, and under which conditions."""
    workload = Workload(
        subjects={"model": subject},
        inputs=inputs,
        threads=1,
        samples=1,
        starts={"model": PROCESSES},
        warmup=0,
        min_sample_ms=1,
    )
    timings = link.measure(workload, Printed())
    return {"counts": timings.counts["model"], "conditions": timings.conditions}


def compared(here: np.ndarray, there: np.ndarray, exact: np.ndarray, tolerance: float | None) -> dict[str, Any]:
    """Answers of another processor beside this one's, and what `edgeforge verify` would allow between the two.

    `exact`: what the same model's float32 file answers here. `tolerance`: what the file's own verification stated.
    """
    apart, moved = float(np.abs(there - here).max()), float(np.abs(here - exact).max())
    limit = max(tolerance or 0.0, FLOAT_MOVES * float(np.abs(here).max())) + QUANTIZED_MOVES * moved
    agreement = float((there.argmax(-1) == here.argmax(-1)).mean())
    return {
        "max_abs_difference": apart,
        "limit": limit,
        "within": apart <= limit and agreement >= AGREEMENT,
        "agreement": agreement,
        "output_range": float(here.max() - here.min()),
        "quantization_moves": moved,
    }


def make(model: str, task: Task, artifacts: dict[str, Any], options: argparse.Namespace) -> None:
    """Every row of a model that is not there yet."""
    folder = options.work / "runs" / model / "artifacts"
    data = task.open(folder / "baseline")
    count = min(options.samples, data.size("test"))
    with tempfile.TemporaryDirectory() as scratch:
        samples, few = Path(scratch) / "samples.npz", Path(scratch) / "few.npz"
        labels = saved(samples, data, count)
        saved(few, data, CALLS)
        subjects = {name: Subject(runtime="onnxruntime", folder=(folder / name).absolute()) for name in FILES}
        local, answers = link_of("local"), dict[str, np.ndarray]()
        for name in FILES:
            for device in PROCESSORS:
                path = ROWS / f"{model}-{name}-{device}.json"
                known = read_row(path)
                if known and known.get("samples", count) >= count:
                    continue
                link = link_of("qemu", profile(device).connection)
                row = {"model": model, "file": name, "device": device, "bytes": artifacts[name]["bytes"]}
                row |= counted(link, subjects[name], few)
                if name != FLOAT:
                    for one in (FLOAT, name):
                        if one not in answers:
                            answers[one] = local.outputs(subjects[one], samples, Printed())
                    there = link.outputs(subjects[name], samples, Printed())
                    tolerance = artifacts[name]["parity"]["tolerance"]
                    row |= compared(answers[name], there, answers[FLOAT], tolerance)
                    row |= {"samples": count, "here": _metrics(task, answers[name], labels)}
                    row |= {"there": _metrics(task, there, labels)}
                print()
                write_row(path, row)


def _metrics(task: Task, logits: np.ndarray, labels: torch.Tensor) -> dict[str, float]:
    found = task.metrics(torch.from_numpy(logits), labels)
    return {name: value for name, value in found.items() if isinstance(value, float)}


def files_of(model: str, options: argparse.Namespace) -> tuple[Pipeline, dict[str, Any]]:
    """Make a model's files where they are not in the work folder yet; each one's entry in report.json."""
    made = source(model, options)
    kept = options.work / f"{model}.json"
    found = read_row(kept)
    if found is None:
        found = run_pipeline(made, options.work)
        write_row(kept, found)
    pipeline = parse(yaml.safe_dump(made).encode(), model)
    return pipeline, {entry["name"]: entry for entry in found["artifacts"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="store and runs; may be removed afterwards")
    parser.add_argument("--only", choices=MODELS, help="one model")
    parser.add_argument("--samples", type=int, default=256, help="test samples that every file answers")
    parser.add_argument("--mails", help="the folder that holds spam_assassin/")
    parser.add_argument("--text-model", type=Path, help="a MiniLM that was fine-tuned on it")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for model in [options.only] if options.only else MODELS:
        pipeline, artifacts = files_of(model, options)
        make(model, pipeline.task, artifacts, options)


if __name__ == "__main__":
    main()
