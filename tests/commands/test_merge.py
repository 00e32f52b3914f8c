"""Results of devices taken into a report: only of the same file, statistics computed here, twice is as once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from edgeforge import cli
from edgeforge.commands.merge import merge
from edgeforge.core.errors import ConfigurationError
from edgeforge.core.report import Report

SHA = "9f" * 32
SAMPLES = [1.9, 2.0, 2.1, 2.2, 2.4, 9.0]
ENVIRONMENT = {"cpu": "iPhone17,1", "cores": 6, "ram_gb": 8.0, "os": "iOS 18.1", "python": "", "packages": {}}


def row(metric: str, samples: list[float], runtime: str = "coreml all", **changes: Any) -> dict[str, Any]:
    """What the Swift benchmark writes: its own median and p90 are near, and it has no interval."""
    return {
        "device": "iphone_15_pro",
        "runtime": runtime,
        "metric": metric,
        "origin": "measured",
        "n": len(samples),
        "median": 0.0,
        "p90": 0.0,
        "ci95": [None, None],
        "samples": samples,
        **changes,
    }


def result(folder: Path, *measurements: dict[str, Any], sha256: str = SHA, name: str = "ios_int4") -> Path:
    conditions = {
        "device": "iphone_15_pro",
        "hardware": "iPhone16,1, Version 18.1",
        "placement": {"all": {"neural_engine": 40, "cpu": 2}, "cpuOnly": {"cpu": 42}},
        "thermal_before": "nominal",
        "thermal_after": "fair",
    }
    artifact = {
        "name": name,
        "status": "shipped",
        "format": "coreml",
        "sha256": sha256,
        "measurements": list(measurements),
        "conditions": [conditions],
    }
    content = {
        "schema": "edgeforge.report/1",
        "pipeline": "fashion-phone",
        "run": "fashion-phone-20261121T221504Z",
        "edgeforge": "0.1.0",
        "created": "2026-11-22T08:00:00Z",
        "environment": ENVIRONMENT,
        "stages": [],
        "artifacts": [artifact],
    }
    path = folder / "result.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A report with an iOS file that could not be measured, and a budget on its latency."""
    folder = tmp_path / "run"
    folder.mkdir()
    host = row("latency_ms", [3.0], "onnxruntime", device="host_cpu")
    artifacts = [
        {"name": "baseline", "status": "shipped", "format": "onnx", "sha256": "01" * 32, "measurements": [host]},
        {
            "name": "ios_int4",
            "status": "shipped",
            "format": "coreml",
            "sha256": SHA,
            "bytes": 1000,
            "conditions": [{"device": "iphone_15_pro", "reason": "this device cannot be reached from here yet"}],
        },
        {"name": "watch", "status": "absent", "reason": "no converter", "format": "coreml"},
    ]
    limit = {"metric": "latency_ms", "value": None, "passed": False, "reason": "could not be measured here"}
    content = {
        "schema": "edgeforge.report/1",
        "pipeline": "fashion-phone",
        "run": "fashion-phone-20261121T221504Z",
        "edgeforge": "0.1.0",
        "created": "2026-11-21T22:15:04+00:00",
        "environment": ENVIRONMENT,
        "stages": [],
        "artifacts": artifacts,
        "budgets": [
            {"target": "ios_int4", "device": "iphone_15_pro", "limit": 2.5, **limit},
            {"target": "ios_int4", "device": "pixel_8", "limit": 2.5, **limit},
            {"target": "ios_int4", "metric": "size_mb", "limit": 1, "value": 0.001, "passed": True},
        ],
    }
    (folder / "report.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def shown(run: Path) -> Report:
    return Report.model_validate_json((run / "report.json").read_bytes())


def test_measurements_get_their_statistics_from_the_samples(run: Path, tmp_path: Path) -> None:
    merge(run, result(tmp_path, row("latency_ms", SAMPLES), row("load_ms", [31.0])))
    found = shown(run).artifact("ios_int4")
    assert found is not None
    latency, load = found.measurements
    assert latency.median == pytest.approx(np.median(SAMPLES))
    assert latency.p90 == pytest.approx(np.percentile(SAMPLES, 90))
    assert latency.ci95[0] is not None and latency.ci95[0] <= latency.median <= (latency.ci95[1] or 0)
    assert (latency.origin, latency.device, latency.runtime, latency.n) == (
        "measured",
        "iphone_15_pro",
        "coreml all",
        6,
    )
    assert load.samples == (31.0,)
    (conditions,) = found.conditions  # it is no longer out of reach
    said = conditions.model_extra or {}
    assert said["merged"]["file"] == "result.json" and len(said["merged"]["sha256"]) == 64
    assert "operations with all: 2 on cpu, 40 on neural_engine" in said["hardware"]
    assert "nominal → fair" in said["hardware"]
    for name in ("report.md", "report.html"):
        text = (run / name).read_text(encoding="utf-8")
        assert "iphone_15_pro" in text and "iPhone16,1" in text and "cannot be reached" not in text


def test_merging_twice_is_as_once_and_a_newer_result_replaces(run: Path, tmp_path: Path) -> None:
    path = result(tmp_path, row("latency_ms", SAMPLES), row("latency_ms", [4.0, 4.1], "coreml cpuOnly"))
    merge(run, path)
    once = (run / "report.json").read_bytes()
    merge(run, path)
    assert (run / "report.json").read_bytes() == once
    merge(run, result(tmp_path, row("latency_ms", [1.0, 1.1])))
    found = shown(run).artifact("ios_int4")
    assert found is not None
    assert {(item.runtime, item.n) for item in found.measurements} == {("coreml all", 2), ("coreml cpuOnly", 2)}
    assert shown(run).artifact("baseline") == Report.model_validate_json(once).artifact("baseline")


@pytest.mark.parametrize(("latency", "kept"), [(2.1, True), (2.6, False)])
def test_a_budget_that_waited_for_the_device_is_judged(run: Path, tmp_path: Path, latency: float, kept: bool) -> None:
    merge(run, result(tmp_path, row("latency_ms", [latency] * 5)))
    judged, waiting, size = shown(run).budgets
    assert (judged.value, judged.passed, judged.reason) == (latency, kept, None)
    assert (waiting.value, waiting.passed) == (None, False) and size.passed


@pytest.mark.parametrize("origin", ["emulated", "estimated"])
def test_only_what_was_measured_judges_a_budget(run: Path, tmp_path: Path, origin: str) -> None:
    merge(run, result(tmp_path, row("latency_ms", [1.0] * 5, origin=origin)))
    waiting = shown(run).budgets[0]
    assert (waiting.value, waiting.passed, waiting.reason) == (None, False, "could not be measured here")


def test_an_estimate_stays_beside_what_was_measured(run: Path, tmp_path: Path) -> None:
    """Its row, its basis, and the conditions that say what was refused."""
    content = json.loads((run / "report.json").read_text(encoding="utf-8"))
    ios = content["artifacts"][1]
    estimate = row("latency_ms", [], "QNN on the NPU", origin="estimated", median=9.0, p90=None)
    ios["measurements"] = [estimate]
    ios["conditions"] = [{"device": "iphone_15_pro", "estimates": [], "refused": ["no estimate: no rows"]}]
    (run / "report.json").write_text(json.dumps(content), encoding="utf-8")
    path = result(tmp_path, row("latency_ms", [2.1] * 5))
    for _ in range(2):
        merge(run, path)
        found = shown(run).artifact("ios_int4")
        assert found is not None
        assert [item.origin for item in found.measurements] == ["estimated", "measured"]
        assert [set(item.model_extra or {}) & {"refused", "merged"} for item in found.conditions] == [
            {"refused"},
            {"merged"},
        ]
    assert shown(run).budgets[0].value == 2.1


def test_a_device_that_no_target_named_gets_its_title(run: Path, tmp_path: Path) -> None:
    merge(run, result(tmp_path, row("latency_ms", SAMPLES)))
    (phone,) = shown(run).devices
    assert (phone.name, phone.title, phone.chip) == ("iphone_15_pro", "Apple iPhone 15 Pro", "Apple A17 Pro")
    merge(run, result(tmp_path, row("latency_ms", SAMPLES, device="Mac15,3")))
    assert [item.name for item in shown(run).devices] == ["iphone_15_pro", "Mac15,3"]
    assert "Apple iPhone 15 Pro" in (run / "report.html").read_text(encoding="utf-8")


def refused(run: Path, path: Path) -> str:
    before = (run / "report.json").read_bytes()
    with pytest.raises(ConfigurationError) as error:
        merge(run, path)
    assert (run / "report.json").read_bytes() == before and not (run / "report.html").exists()
    return str(error.value)


def test_a_result_of_another_file_is_refused(run: Path, tmp_path: Path) -> None:
    measured = row("latency_ms", SAMPLES)
    assert "another file was measured" in refused(run, result(tmp_path, measured, sha256="00" * 32))
    assert "perhaps you meant 'ios_int4'" in refused(run, result(tmp_path, measured, name="ios_int8"))
    assert "another file was measured" in refused(run, result(tmp_path, measured, name="watch"))


@pytest.mark.parametrize(
    "measurements",
    [
        [],
        [row("latency_ms", [])],
        [row("latency_ms", [1.0, -1.0])],
        [row("latency_ms", [1.0], "<script>alert(1)</script>")],
        [row("latency_ms", [1.0], device="x" * 500)],
        [row("latency_ms", [1.0], origin="guessed")],
        [row("latency_ms", ["fast"])],  # type: ignore[list-item]
    ],
)
def test_what_is_no_measurement_is_refused(run: Path, tmp_path: Path, measurements: list[dict[str, Any]]) -> None:
    refused(run, result(tmp_path, *measurements))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": "other/1"}', "\x00"])
def test_other_files_are_refused(run: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(content, encoding="utf-8")
    assert "no result" in refused(run, path)
    assert "cannot be read" in refused(run, tmp_path / "missing.json")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments)


def test_the_command_takes_results_and_says_what_is_wrong(run: Path, tmp_path: Path) -> None:
    done = invoke("report", str(run), "--merge", str(result(tmp_path, row("latency_ms", SAMPLES))))
    assert done.exit_code == 0 and "ios_int4" in done.output
    found = shown(run).artifact("ios_int4")
    assert found is not None and found.measurements
    assert invoke("report", str(run), "--merge", str(tmp_path / "missing.json")).exit_code == 2
