"""What the benchmarks share: raw rows as JSON files, files raced in one process, means with their intervals."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from edgeforge.core.measurement import bootstrap_median
from edgeforge.core.task import TaskData, model_inputs
from edgeforge.environment import describe
from edgeforge.links import Subject, Workload
from edgeforge.links.local import Local
from edgeforge.pipeline import parse
from edgeforge.plan import build
from edgeforge.progress import TerminalWatcher
from edgeforge.run import execute
from edgeforge.store import Store

SEEDS = (0, 1, 2)
T975 = {2: 12.706, 3: 4.303}
"""97.5 % points of Student's t for the mean of 2 and 3 values."""


def arguments(about: str | None) -> argparse.ArgumentParser:
    """The options every benchmark of several seeds has."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True, help="models, store and runs; may be removed afterwards")
    parser.add_argument("--only", help="one row")
    parser.add_argument("--latency", action="store_true", help="measure the files that are there")
    return parser


def write_row(path: Path, result: Mapping[str, Any]) -> None:
    """One raw result."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path.name}", flush=True)


def read_row(path: Path) -> dict[str, Any] | None:
    """A raw result, or None where it was not made yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def run_pipeline(source: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """Run one pipeline; its stages, artifacts and environment as report.json has them. Raises what stopped it."""
    plan = build(parse(yaml.safe_dump(dict(source)).encode(), str(source["name"])))
    began = time.monotonic()
    watcher = TerminalWatcher(Console())
    outcome = execute(plan, Store(work / "store"), work / "runs" / str(source["name"]), watcher=watcher)
    if outcome.error is not None:
        raise outcome.error
    report = json.loads(outcome.report.to_json())
    return {
        "seconds_since_last_start": round(time.monotonic() - began, 1),
        **{key: report[key] for key in ("stages", "artifacts", "environment")},
    }


def race(folders: Mapping[str, Subject], data: TaskData, seed: int) -> dict[str, Any]:
    """Every file against the one named `teacher`, batch 1, one thread, in one process, in shuffled rounds."""
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Path(scratch) / "inputs.npz"
        samples = model_inputs(data.batch("test", range(16)))
        np.savez(inputs, **{name: value.numpy() for name, value in samples.items()})  # type: ignore[arg-type]
        workload = Workload(
            subjects=dict(folders),
            inputs=inputs,
            threads=1,
            samples=60,
            starts=dict.fromkeys(folders, 0),
            warmup=5,
            min_sample_ms=5,
            seed=seed,
        )
        timings = Local().measure(workload, TerminalWatcher(Console()))
    teacher = timings.latency_ms["teacher"]
    files = {}
    for name, values in timings.latency_ms.items():
        ratios = [before / after for before, after in zip(teacher, values, strict=True)]
        files[name] = {
            "median_ms": float(np.median(values)),
            "ratio": float(np.median(ratios)),
            "ci95": bootstrap_median(ratios),
            "samples_ms": [round(value, 6) for value in values],
        }
    return {
        "row": "latency",
        "seed": seed,
        "waiting_share": timings.waiting_share,
        "conditions": timings.conditions,
        "files": files,
        "environment": describe(),
    }


def mean(values: Sequence[float]) -> str:
    """``12.3 ±0.4``; a single value has no interval."""
    if not values:
        return "missing"
    if len(values) == 1:
        return f"{values[0]:.2f} (1 seed)"
    return f"{statistics.mean(values):.2f} ±{interval(values):.2f}" + ("" if len(values) == 3 else " (2 seeds)")


def interval(values: Sequence[float]) -> float:
    """Half the 95 % interval of the mean."""
    return T975[len(values)] * statistics.stdev(values) / math.sqrt(len(values))


def verdict(gains: Sequence[float]) -> str:
    """What differences, seed by seed, come to; none is seen where their interval contains 0."""
    if len(gains) < 2:
        return "missing"
    if abs(statistics.mean(gains)) <= interval(gains):
        return "no difference seen"
    return "better" if statistics.mean(gains) > 0 else "worse"


def put_between(path: Path, mark: str, lines: Sequence[str]) -> None:
    """Replace what stands between ``<!-- measured: MARK -->`` and the next ``<!-- end of measured -->``."""
    before, opening, rest = path.read_text(encoding="utf-8").partition(f"<!-- measured: {mark} -->\n")
    _, closing, after = rest.partition("<!-- end of measured -->")
    path.write_text(before + opening + "\n".join(lines) + closing + after, encoding="utf-8")
