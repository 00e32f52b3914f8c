"""SmolLM2-135M cut, taught and quantized, against its own Q4_0; and what each ingredient of the recipe is worth.

Every row is a pipeline that `edgeforge run` could run; its raw result is rows/compression-<row>-seed<k>.json. A row
that is there is not made again, and one that was killed goes on from its checkpoint. In domain are addresses on the
State of the Union of years that no training text is from, out of domain is Moby Dick, and no row is taught the
questions or near-duplicates of them. Speeds are measured last, of all files in one run on an otherwise idle machine.

    edgeforge fetch smollm2-135m --out data && edgeforge fetch state-of-the-union --out data
    edgeforge fetch moby-dick --out data && python -m benchmarks.smollm2.prompts --out data/smollm2
    python -m benchmarks.smollm2.compression --seed 0 --data data --work data/smollm2-bench
    python -m benchmarks.smollm2.compression --seed 0 ... --latency
    python -m benchmarks.smollm2.compression_table
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from rich.console import Console

from benchmarks.measuring import arguments, run_pipeline, write_row
from edgeforge.core.artifact import Artifact, digest_files, hash_folder
from edgeforge.core.document import to_yaml
from edgeforge.core.measurement import bootstrap_median
from edgeforge.core.stage import Job
from edgeforge.environment import describe
from edgeforge.links import Subject, Workload
from edgeforge.links.local import Local
from edgeforge.pipeline import parse
from edgeforge.progress import TerminalWatcher
from edgeforge.stages._text_benchmark import prompt, save
from edgeforge.stages.evaluate import Evaluate

ROWS = Path(__file__).parent / "rows"
TEACHER = "teacher.q4_0"
"""The file that sizes and speeds are compared with."""

WINDOW, WINDOWS = 256, 64
VOCABULARY = 16384
STEPS = 600
RECIPE = {"batch_size": 4, "learning_rate": 8e-4, "clip_norm": 1.0}
TAUGHT = [{"kind": "soft_targets", "temperature": 1, "weight": 0.9}, {"kind": "hard_labels", "weight": 0.1}]
CHATS = 0.4
"""Share of training windows that the teacher wrote."""

Q4_0 = {"name": "q4_0", "quantize": {"kind": "gguf_k", "type": "q4_0"}, "export": "gguf", "devices": []}
IQ4_NL = {"name": "iq4_nl", "quantize": {"kind": "gguf_k", "type": "iq4_nl"}, "export": "gguf", "devices": []}


def task(data: Path, *, test: str = "state_of_the_union/test.jsonl", window: int = WINDOW) -> dict[str, Any]:
    """The task of a row; its windows when it is tested are the same whatever it is taught with."""
    return {
        "kind": "causal_lm",
        "data": {
            "kind": "jsonl",
            "train": str(data / "state_of_the_union/train.jsonl"),
            "test": str(data / test),
        },
        "max_length": window,
        "evaluation_windows": WINDOWS,
        "prompts": str(data / "smollm2/prompts_tested.jsonl"),
        "max_new_tokens": 40,
    }


# -- stages


def chats(data: Path) -> dict[str, Any]:
    """What the teacher answers to other questions."""
    return {
        "kind": "generate",
        "name": "chats",
        "prompts": str(data / "smollm2/prompts_taught.jsonl"),
        "samples": 4,
        "temperature": 0.7,
        "max_new_tokens": 128,
        "runtime": "llama_cpp",
    }


def vocabulary() -> dict[str, Any]:
    """A table of 49,152 tokens is a fifth of the model; speeches need a third of them."""
    return {"kind": "prune", "name": "vocabulary", "structure": {"kind": "vocabulary", "max_size": VOCABULARY}}


def shallow(criterion: Mapping[str, Any]) -> dict[str, Any]:
    """Six of thirty blocks leave."""
    return {"kind": "prune", "name": "shallow", "structure": {"kind": "layers", "count": 6}, "criterion": criterion}


def narrow(teacher: str, *, steps: int = STEPS, mix: bool = True) -> dict[str, Any]:
    """1536 -> 1024 neurons in each feed-forward part, and what is left learns from what it was."""
    recover: dict[str, Any] = {
        **RECIPE,
        "steps": steps,
        "losses": TAUGHT,
        "teacher": {"kind": "model", "stage": teacher},
    }
    if mix:
        recover["mix"] = {"stage": "chats", "share": CHATS}
    structure = {"kind": "ffn_width", "width": 1024}
    return {"kind": "prune", "name": "narrow", "structure": structure, "criterion": "activation", "recover": recover}


DROP_LOSS = {"kind": "drop_loss", "samples": 4}


def rows(data: Path) -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Row name -> (its stages, how its task differs). `whole` is the recipe; every other row lacks one thing of it."""
    begun = [chats(data), vocabulary()]
    tuned = {"kind": "finetune", **RECIPE, "learning_rate": 1e-4, "steps": STEPS}
    return {
        "teacher": ([], {}),
        "tuned-teacher": ([chats(data), {**tuned, "mix": {"stage": "chats", "share": CHATS}}], {}),
        "whole": ([*begun, shallow(DROP_LOSS), narrow("vocabulary")], {}),
        "no-chats": ([vocabulary(), shallow(DROP_LOSS), narrow("vocabulary", mix=False)], {}),
        "third-of-steps": ([*begun, shallow(DROP_LOSS), narrow("vocabulary", steps=STEPS // 3)], {}),
        "block-influence": ([*begun, shallow({"kind": "activation"}), narrow("vocabulary")], {}),
        "all-tokens": ([chats(data), shallow(DROP_LOSS), narrow("model")], {}),
        "short-windows": ([*begun, shallow(DROP_LOSS), narrow("vocabulary")], {"window": 64}),
    }


REPEATED = ("tuned-teacher", "whole")
"""Rows made for every seed; the others, each a change of one thing, for the first alone."""


def pipeline(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A row as a pipeline file."""
    data = Path(options.data).absolute()
    stages, said = rows(data)[name]
    return {
        "name": f"compression-{name}-seed{options.seed}",
        "task": task(data, **said),
        "model": {"kind": "gguf", "path": str(data / "smollm2_135m.gguf")},
        "seed": options.seed,
        "stages": stages,
        "targets": [Q4_0] if name.endswith("teacher") else [IQ4_NL, Q4_0],
    }


def files(name: str, options: argparse.Namespace) -> dict[str, Path]:
    """The written files of a row, by ``row.target``; the teacher's float16 file among them."""
    folder = options.work / "runs" / f"compression-{name}-seed{options.seed}" / "artifacts"
    found = {f"{name}.{path.name}": path for path in sorted(folder.glob("*")) if path.name != "baseline"}
    if name == "teacher" and (folder / "baseline").is_dir():
        found["teacher.f16"] = folder / "baseline"
    return found


# -- what is measured


def make(name: str, options: argparse.Namespace) -> None:
    """One row: run its pipeline, ask its files about both domains, write its raw result."""
    path = ROWS / f"compression-{name}-seed{options.seed}.json"
    if path.is_file():
        return
    source = pipeline(name, options)
    found = run_pipeline(source, options.work)
    tested = {
        domain: {file: metrics(folder, domain, options) for file, folder in files(name, options).items()}
        for domain in ("in", "out")
    }
    sizes = {file: (folder / "model.gguf").stat().st_size for file, folder in files(name, options).items()}
    # Where things lay is of no interest to others.
    text = json.dumps(source).replace(str(Path(options.data).absolute()), "data")
    said = {"row": name, "seed": options.seed, "pipeline": json.loads(text), "bytes": sizes, "tested": tested}
    write_row(path, {**said, **found})


def metrics(folder: Path, domain: str, options: argparse.Namespace) -> Mapping[str, Any]:
    """Perplexity, bits per byte and (in domain) the share of questions passed, of a file as it was written."""
    test = "state_of_the_union/test.jsonl" if domain == "in" else "moby_dick/moby_dick.jsonl"
    said = task(Path(options.data).absolute(), test=test)
    if domain == "out":
        del said["prompts"]
    fields = {"name": "tested", "task": said, "model": {"kind": "pretrained", "path": str(folder)}, "stages": []}
    opened = parse(to_yaml(fields).encode(), "tested").task
    hashes = hash_folder(folder)
    artifact = Artifact("file", "", "gguf", folder, digest_files(hashes), hashes, {}, {}, {})
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(opened, Path(scratch), options.seed, _accelerator, TerminalWatcher(Console()), folder)
        facts = Evaluate().run({"model": artifact}, job)
    if facts["metrics"] is None:
        raise SystemExit(f"{folder}: {facts['reason']}")
    found: Mapping[str, Any] = facts["metrics"]
    return found


def _accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def latency(options: argparse.Namespace) -> None:
    """Tokens written per second, every file of a seed against the teacher's Q4_0, in one process and in rounds."""
    folders: dict[str, Path] = {}
    for name in rows(Path(options.data)):
        folders |= files(name, options)
    data = parse(to_yaml(pipeline("teacher", options)).encode(), "teacher").task.open(folders[TEACHER])
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Path(scratch) / "inputs.npz"
        # The first ids are those of bytes, which every vocabulary has; which they are makes no difference to time.
        save(inputs, [token % 256 for token in prompt(data, 128)])
        workload = Workload(
            subjects={name: Subject(runtime="llama_cpp", folder=folder) for name, folder in folders.items()},
            inputs=inputs,
            threads=1,
            samples=15,
            starts=dict.fromkeys(folders, 1),
            warmup=1,
            min_sample_ms=5,
            seed=options.seed,
            new_tokens=64,
        )
        timings = Local().measure(workload, TerminalWatcher(Console()))
    found = {}
    for name, values in timings.latency_ms.items():
        ratios = [before / after for before, after in zip(timings.latency_ms[TEACHER], values, strict=True)]
        found[name] = {
            "median_ms_per_token": float(np.median(values)),
            "ratio": float(np.median(ratios)),
            "ci95": bootstrap_median(ratios),
            "samples_ms": [round(value, 6) for value in values],
        }
    result = {"row": "latency", "seed": options.seed, "conditions": timings.conditions, "files": found}
    write_row(ROWS / f"compression-latency-seed{options.seed}.json", {**result, "environment": describe()})


def main() -> None:
    options = arguments(__doc__).parse_args()
    options.work = options.work.absolute()
    if options.latency:
        latency(options)
        return
    names = rows(Path(options.data)) if options.seed == 0 else ("teacher", *REPEATED)
    for name in [options.only] if options.only else names:
        make(name, options)


if __name__ == "__main__":
    main()
