"""A device that has no times: instructions are counted instead, and nothing that is said speaks of milliseconds."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from rich.console import Console

from edgeforge.commands import bench
from edgeforge.core.artifact import Artifact
from edgeforge.core.measurement import Origin
from edgeforge.core.report import BenchmarkConditions, MeasurementRow
from edgeforge.core.stage import Job
from edgeforge.core.task import Input, Interface, Pixels
from edgeforge.links import Link, Timings, Workload
from edgeforge.renderers import _text
from edgeforge.stages import benchmark
from edgeforge.stages.benchmark import Benchmark

COST = {"model": 2_000_000.0, "baseline": 9_000_000.0, "floor": 9_000.0}


class Counting(Link):
    """The first process of a file counts one instruction more than the others."""

    kind: str = "counting"
    origin: ClassVar[Origin] = "emulated"

    def unavailable(self, runtime: str) -> str | None:
        return None

    def measure(self, workload: Workload, progress: Any) -> Timings:
        return Timings(
            starts={},
            latency_ms={},
            calls_per_sample={},
            waiting_share=None,
            conditions={"threads": 1, "hardware": "emulated"},
            counts={
                name: tuple(
                    {"instructions": COST[name] + (first == 0)} for first in range(workload.starts.get(name, 1))
                )
                for name in workload.subjects
            },
        )


class Data:
    interface = Interface((Input("pixel_values", (1, 4, 4)),), "logits", ("a", "b"), Pixels((0.0,), (1.0,)))

    def size(self, split: str) -> int:
        return 4

    def batch(self, split: str, indices: Any) -> dict[str, Any]:
        return {"pixel_values": SimpleNamespace(numpy=lambda: np.zeros((4, 1, 4, 4), np.float32)), "labels": None}


def facts_of(tmp_path: Path, monkeypatch: Any) -> dict[str, Any]:
    monkeypatch.setattr(benchmark, "link_of", lambda kind, connection: Counting())
    inputs = {
        name: Artifact("k", "export", "onnx", tmp_path / name, "", {}, {}, {}, {}) for name in ("model", "baseline")
    }
    task: Any = SimpleNamespace(open=lambda model: Data())
    silent: Any = SimpleNamespace(update=lambda *said: None, warn=lambda said: None)
    found = dict(Benchmark(device="emulated_a76").run(inputs, Job(task, tmp_path, 0, lambda: None, silent)))  # type: ignore[arg-type, return-value]
    assert json.loads((tmp_path / "measurements.json").read_text()) == found
    return found


def test_counts_take_the_place_of_times(tmp_path, monkeypatch) -> None:
    facts = facts_of(tmp_path, monkeypatch)
    (row,) = map(MeasurementRow.model_validate, facts["measurements"])
    assert (row.metric, row.origin, row.n, row.median) == ("instructions", "emulated", 3, 2_000_000)
    assert [row["metric"] for row in facts["baseline"]] == ["instructions"]
    assert facts["latency"] is facts["parent_latency"] is None
    said = json.dumps([row for role in ("measurements", "baseline", "floor") for row in facts[role]])
    assert "_ms" not in said and "min_sample_ms" not in facts


def test_a_report_says_nothing_of_times(tmp_path, monkeypatch) -> None:
    facts = facts_of(tmp_path, monkeypatch)
    known = {name: facts[name] for name in ("threads", "floor")}
    item = BenchmarkConditions.model_validate({**known, **facts["conditions"], "device": "emulated_a76"})
    assert _text.conditions(item) == ["threads: 1", "emulated"]


def test_bench_shows_how_many_fewer(tmp_path, monkeypatch) -> None:
    stream = io.StringIO()
    bench.show({"android": facts_of(tmp_path, monkeypatch)}, Console(file=stream, width=100))
    line = next(line for line in stream.getvalue().splitlines() if line.startswith("android"))
    assert line.split()[1:3] == ["2.00", "M"]
    assert line.rstrip().endswith(f"4.50{_text.TIMES} fewer")
