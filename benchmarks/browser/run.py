"""What a browser makes of the files: latency and answers in Chromium beside native ONNX Runtime, on one machine.

Two models, each as float32, INT8 and INT4: the quickstart's image classifier at the end of its chain, and a MiniLM-L6
fine-tuned for a few steps on mails. The files are made once, in `--work`. A run then measures them in blocks: all files
of a model in one native process, in shuffled rounds, then all of them in one page, then the other way about, so that a
machine that changes its pace changes it for both. Its raw result is rows/<model>-threads<n>-run<seed>.json; table.py
draws the tables. Run it on an otherwise idle machine.

    edgeforge fetch browser-runner
    edgeforge fetch spam-assassin --out data && edgeforge fetch minilm-l6 --out data
    python -m benchmarks.browser.run --seed 0 --data data --work data/browser-bench
    python -m benchmarks.browser.run --seed 0 --data data --work data/browser-bench --threads 2
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.measuring import run_pipeline, write_row
from edgeforge.core.artifact import digest_files, hash_folder
from edgeforge.core.task import TaskData, model_inputs
from edgeforge.environment import describe
from edgeforge.links import Link, Subject, Timings, Workload, link_of
from edgeforge.pipeline import Pipeline, parse

HERE = Path(__file__).parent
ROWS = HERE / "rows"
QUICKSTART = HERE.parent.parent / "pipelines" / "quickstart.yaml"
MODELS = ("image", "text")
FILES = ("fp32", "int8", "int4")
LINKS = ("local", "browser")
INPUTS = 16
"""How many test samples the timed calls go through in turn."""
ANSWERED = 200
"""How many of them both answer, so that the answers can be compared."""
MAX_LENGTH = 128
FINE_TUNING_STEPS = 60


class Quiet:
    """Progress of which only the warnings are shown."""

    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        print(f"warning: {message}", flush=True)


def source(model: str, data: Path) -> dict[str, Any]:
    """The pipeline that makes a model's files."""
    kinds: Mapping[str, Any] = {
        "fp32": None,
        "int8": {"kind": "int8_static", "samples": 256} if model == "image" else "int8_dynamic",
        "int4": {"kind": "int4_weights", "block_size": 32},
    }
    targets = [{"name": name, "quantize": kinds[name], "export": "onnx", "devices": []} for name in FILES]
    del targets[0]["quantize"]
    if model == "image":
        quickstart = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
        return {**quickstart, "name": "browser-image", "targets": targets, "budgets": {}}
    files = {part: str(data / "spam_assassin" / f"{part}.jsonl") for part in ("train", "test")}
    return {
        "name": "browser-text",
        "task": {"kind": "text_classification", "data": {"kind": "jsonl", **files}, "max_length": MAX_LENGTH},
        "model": {"kind": "pretrained", "path": str(data / "minilm_l6"), "new_head": True},
        "stages": [{"kind": "train", "steps": FINE_TUNING_STEPS, "batch_size": 32, "learning_rate": 5e-5}],
        "targets": targets,
    }


def opened(model: str, options: argparse.Namespace) -> Pipeline:
    return parse(yaml.safe_dump(source(model, options.data)).encode(), model)


def made(model: str, options: argparse.Namespace) -> dict[str, Subject]:
    """The model's files, made where they are not there."""
    folders = {name: options.work / "runs" / f"browser-{model}" / "artifacts" / name for name in FILES}
    if not all((folder / "model.onnx").is_file() for folder in folders.values()):
        run_pipeline(source(model, options.data), options.work)
    return {name: Subject(runtime="onnxruntime", folder=folder.absolute()) for name, folder in folders.items()}


def save(path: Path, batch: Mapping[str, Any]) -> Path:
    np.savez(path, **{name: value.numpy() for name, value in model_inputs(batch).items()})  # type: ignore[arg-type]
    return path


def blocks(subjects: Mapping[str, Subject], inputs: Path, options: argparse.Namespace) -> list[dict[str, Timings]]:
    """Timings by link, a block at a time; which link begins alternates."""
    links: dict[str, Link] = {name: link_of(name) for name in LINKS}
    found = []
    for number in range(options.blocks):
        workload = Workload(
            subjects=dict(subjects),
            inputs=inputs,
            threads=options.threads,
            samples=options.samples,
            starts=dict.fromkeys(subjects, 1 if number < options.starts else 0),
            warmup=3,
            min_sample_ms=5,
            seed=options.seed * options.blocks + number,
        )
        order = LINKS if (number + options.seed) % 2 == 0 else LINKS[::-1]
        block = {name: links[name].measure(workload, Quiet()) for name in order}
        if lost := [name for name in LINKS if "partial" in block[name].conditions]:
            raise SystemExit(f"block {number + 1} broke off ({', '.join(lost)}); start this run again")
        found.append(block)
        print(f"block {number + 1} of {options.blocks}", flush=True)
    return found


def answers(subjects: Mapping[str, Subject], data: TaskData, scratch: Path) -> dict[str, Any]:
    """How the page's answers to test samples differ from the native ones, by file."""
    batch = data.batch("test", range(min(ANSWERED, data.size("test"))))
    inputs, labels = save(scratch / "shard.npz", batch), batch["labels"].numpy()
    found = {}
    for name, subject in subjects.items():
        native, page = (link_of(link).outputs(subject, inputs, Quiet()) for link in LINKS)
        found[name] = {
            "samples": len(labels),
            "max_abs_difference": float(np.abs(page - native).max()),
            "native_range": float(native.max() - native.min()),
            "agreement": float((page.argmax(-1) == native.argmax(-1)).mean()),
            "native_accuracy": float((native.argmax(-1) == labels).mean()),
            "page_accuracy": float((page.argmax(-1) == labels).mean()),
        }
    return found


def timed(name: str, link: str, measured: list[dict[str, Timings]]) -> dict[str, Any]:
    """One file's raw numbers over one link, a list of samples for each block."""
    timings = [block[link] for block in measured]
    starts = [start.model_dump() for one in timings for start in one.starts.get(name, ())]
    samples = [[round(value, 6) for value in one.latency_ms[name]] for one in timings]
    return {
        "samples_ms": samples,
        "calls_per_sample": [one.calls_per_sample[name] for one in timings],
        "starts": starts,
    }


def measure(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    subjects = made(model, options)
    data = opened(model, options).task.open(subjects["fp32"].folder if model == "text" else None)
    with tempfile.TemporaryDirectory() as name:
        inputs = save(Path(name) / "inputs.npz", data.batch("test", range(INPUTS)))
        measured = blocks(subjects, inputs, options)
        answered = answers(subjects, data, Path(name))
    return {
        "model": model,
        "seed": options.seed,
        "threads": options.threads,
        "files": {
            name: {
                "bytes": (subject.folder / "model.onnx").stat().st_size,
                "digest": digest_files(hash_folder(subject.folder)),
                "native": timed(name, "local", measured),
                "page": timed(name, "browser", measured),
                "answers": answered[name],
            }
            for name, subject in subjects.items()
        },
        "conditions": [{link: block[link].conditions for link in LINKS} for block in measured],
        "native_waiting_share": [block["local"].waiting_share for block in measured],
        "environment": describe(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True, help="which run this is; decides the orders")
    parser.add_argument("--data", type=Path, required=True, help="where the mails and MiniLM were fetched to")
    parser.add_argument("--work", type=Path, required=True, help="models, store and runs; may be removed afterwards")
    parser.add_argument("--only", choices=MODELS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--samples", type=int, default=10, help="of each file, in each block")
    parser.add_argument("--starts", type=int, default=3, help="blocks that also start each file afresh")
    parser.add_argument("--rows", type=Path, default=ROWS, help="where the raw result is written")
    options = parser.parse_args()
    for model in [options.only] if options.only else MODELS:
        write_row(options.rows / f"{model}-threads{options.threads}-run{options.seed}.json", measure(model, options))


if __name__ == "__main__":
    main()
