"""`edgeforge bench` on a finished run: what it measured stands in its own file and, where it lacked, in the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgeforge.commands import bench
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import DeviceProblem
from edgeforge.core.stage import Job
from edgeforge.stages.benchmark import Benchmark

PIPELINE = """
name: digits
task: image_classification
model: {kind: config, architecture: resnet}
targets: [{name: android, export: onnx, devices: [browser]}]
"""
SUSTAINED = {
    "seconds": 60.0, "first_quarter_ms": 1.0, "last_quarter_ms": 1.5, "ratio": 1.5, "ci95": [1.4, 1.6],
    "verdict": "slows down", "series": [[0.5, 1.0], [59.5, 1.5]],
}  # fmt: skip
ANSWERED = {
    "samples": 10, "metrics": {"accuracy": 0.9, "per_class_accuracy": {"a": 1.0}}, "reason": None,
    "agreement_with_host": 0.975, "max_abs_difference_from_host": 0.25,
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of two files, whose browser was not installed."""
    gone = {"device": "browser", "reason": "no browser of Chromium's family is installed"}
    rows = [
        {"name": name, "status": "shipped", "format": "onnx", "conditions": [gone]} for name in ("baseline", "android")
    ]
    limit = {"target": "android", "metric": "latency_ms", "device": "browser", "limit": 5.0, "value": None}
    environment = {"cpu": "x", "cores": 2, "ram_gb": 1, "os": "y", "python": "3", "packages": {}}
    report = {
        "schema": "edgeforge.report/1", "pipeline": "digits", "run": "r", "edgeforge": "0", "created": "2026-01-01",
        "environment": environment, "stages": [], "artifacts": rows, "budgets": [{**limit, "passed": False}],
        "devices": [{"name": "browser", "title": "A web browser here", "link": "browser"}],
    }  # fmt: skip
    for name in ("baseline", "android"):
        (tmp_path / "artifacts" / name).mkdir(parents=True)
        (tmp_path / "artifacts" / name / "model.onnx").write_bytes(name.encode())
    (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
    (tmp_path / "pipeline.yaml").write_text(PIPELINE, encoding="utf-8")
    return tmp_path


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stage answers without a device; the files it was given."""
    seen: list[str] = []

    def answer(self: Benchmark, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        name = inputs["model"].path.name
        seen.append(name)
        median = 2.0 if name == "baseline" else 1.25
        row = {
            "device": self.device, "runtime": "onnxruntime", "metric": "latency_ms", "origin": "measured", "n": 1,
            "median": median, "p90": median, "ci95": [median, median], "samples": [median], "threads": 1,
        }  # fmt: skip
        facts = {"device": self.device, "threads": 1, "measurements": [row], "conditions": {}, "latency": None}
        return facts | ({"sustained": SUSTAINED, "on_device": ANSWERED} if name == "android" else {})

    monkeypatch.setattr(Benchmark, "run", answer)
    return seen


def stage() -> Benchmark:
    return Benchmark(device="browser", sustained_s=60, accuracy_samples=10)


def test_how_a_file_held_out_and_what_the_device_answered_reach_the_report(run: Path, measuring: list[str]) -> None:
    bench.measure(run, stage=stage(), console=Console(file=StringIO()))
    assert measuring == ["baseline", "android"]
    assert set(json.loads((run / "bench.browser.json").read_text())) == {"baseline", "android"}
    report = json.loads((run / "report.json").read_text())
    android = report["artifacts"][1]
    assert [item["median"] for item in android["measurements"]] == [1.25]
    (said,) = android["conditions"]
    assert (said["reason"], said["merged"]["file"]) == (None, "bench.browser.json")
    assert (said["sustained"]["verdict"], said["sustained"]["series"]) == ("slows down", [[0.5, 1.0], [59.5, 1.5]])
    assert said["on_device"]["metrics"] == {"accuracy": 0.9}
    assert said["on_device"]["agreement_with_host"] == 0.975
    assert [(item["value"], item["passed"]) for item in report["budgets"]] == [(1.25, True)]
    for kind in ("md", "html"):
        text = (run / f"report.{kind}").read_text(encoding="utf-8")
        for part in ("slows down", "accuracy 90.00 %", "97.50 %", "0.250"):
            assert part in text, (kind, part)
        assert "no browser of Chromium" not in text


def test_a_device_that_is_lost_leaves_what_was_measured(
    run: Path, measuring: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Benchmark.run

    def lost(self: Benchmark, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        if inputs["model"].path.name == "android":
            raise DeviceProblem("the page crashed", where="browser")
        return answer(self, inputs, job)

    monkeypatch.setattr(Benchmark, "run", lost)
    with pytest.raises(DeviceProblem, match="the page crashed"):
        bench.measure(run, stage=stage(), console=Console(file=StringIO()))
    baseline, android = json.loads((run / "report.json").read_text())["artifacts"]
    assert [item["median"] for item in baseline["measurements"]] == [2.0]
    assert android["measurements"] == []
    assert android["conditions"][0]["reason"] == "no browser of Chromium's family is installed"
