"""What devices said becomes rows of a report: in a run, and by a later `edgeforge bench`."""

from __future__ import annotations

from typing import Any

import pytest

from edgeforge.core.report import ArtifactRow, Report
from edgeforge.measurements import conditions_of, devices, taken_in

SOURCE = {"file": "bench.pixel_8.json", "created": "2026-01-02T03:04:05+00:00"}
SUSTAINED = {
    "seconds": 60.0, "first_quarter_ms": 1.0, "last_quarter_ms": 1.5, "ratio": 1.5, "ci95": [1.4, 1.6],
    "verdict": "slows down", "series": [[0.5, 1.0], [59.5, 1.5]],
}  # fmt: skip
ANSWERED = {
    "samples": 10, "metrics": {"accuracy": 0.9, "per_class_accuracy": {"a": 1.0}}, "reason": None,
    "agreement_with_host": 1.0, "max_abs_difference_from_host": 1e-6,
}  # fmt: skip


def measurement(device: str, median: float, origin: str = "measured") -> dict[str, Any]:
    return {
        "device": device, "runtime": "onnxruntime", "metric": "latency_ms", "origin": origin, "n": 1,
        "median": median, "p90": median, "ci95": [median, median], "samples": [median],
    }  # fmt: skip


def facts(device: str, median: float, ratio: float, **more: Any) -> dict[str, Any]:
    compared = {
        "device": device, "runtime": "onnxruntime", "origin": "measured", "n": 40, "ratio": ratio,
        "ci95": [ratio, ratio], "verdict": "faster",
    }  # fmt: skip
    return {
        "measurements": [measurement(device, median)], "latency": compared, "threads": 2,
        "conditions": {"busy": None}, **more,
    }  # fmt: skip


@pytest.fixture
def report() -> Report:
    """Measured here; a phone that did not answer, and is estimated."""
    gone = {"device": "pixel_8", "reason": "no Android device is connected"}
    here = {"device": "host_cpu", "threads": 1}
    artifacts = [
        {"name": name, "status": "shipped", "format": "onnx", "conditions": [here, gone],
         "measurements": [measurement("host_cpu", 2.0), measurement("pixel_8", 9.0, "estimated")],
         "deltas": {"latency_ratio": None}}
        for name in ("baseline", "android")
    ]  # fmt: skip
    limit = {"target": "android", "limit": 5.0, "value": None, "passed": False, "reason": "could not be measured here"}
    budgets = [
        {**limit, "metric": "latency_ms", "device": "pixel_8"},
        {**limit, "metric": "latency_ratio", "device": "pixel_8"},
        {**limit, "metric": "latency_ms", "device": "host_cpu", "value": 2.0, "passed": True, "reason": None},
        {**limit, "metric": "accuracy_drop"},
    ]  # fmt: skip
    environment = {"cpu": "x", "cores": 2, "ram_gb": 1, "os": "y", "python": "3", "packages": {}}
    data = {
        "pipeline": "p", "run": "r", "edgeforge": "0", "created": "now", "environment": environment, "stages": [],
        "artifacts": artifacts, "budgets": budgets, "devices": [{"name": "host_cpu"}],
    }  # fmt: skip
    return Report.model_validate(data)


def android(report: Report) -> ArtifactRow:
    row = report.artifact("android")
    assert row is not None
    return row


def test_a_device_that_answers_later_gets_its_rows_and_its_limits_are_judged(report: Report) -> None:
    found = {"baseline": facts("pixel_8", 12.0, 1.0), "android": facts("pixel_8", 3.0, 4.0, sustained=SUSTAINED)}
    after = taken_in(report, "pixel_8", found, source=SOURCE)
    row = android(after)
    assert [(item.device, item.origin, item.median) for item in row.measurements] == [
        ("host_cpu", "measured", 2.0), ("pixel_8", "estimated", 9.0), ("pixel_8", "measured", 3.0),
    ]  # fmt: skip
    here, phone = row.conditions
    assert here.device == "host_cpu"
    assert (phone.reason, phone.model_extra and phone.model_extra["merged"]) == (None, SOURCE)
    assert phone.sustained is not None and (phone.sustained.ratio, phone.sustained.threads) == (1.5, 2)
    assert row.deltas == {"latency_ratio": 4.0}
    assert [(item.value, item.passed, item.reason) for item in after.budgets] == [
        (3.0, True, None), (4.0, False, None), (2.0, True, None), (None, False, "could not be measured here"),
    ]  # fmt: skip
    assert [item.name for item in after.devices] == ["host_cpu", "pixel_8"]
    assert after.devices[1].title == "Google Pixel 8"
    assert Report.model_validate_json(after.to_json()) == after


def test_what_a_later_benchmark_said_is_replaced_by_the_next(report: Report) -> None:
    once = taken_in(report, "pixel_8", {"android": facts("pixel_8", 3.0, 4.0)}, source=SOURCE)
    twice = taken_in(once, "pixel_8", {"android": facts("pixel_8", 2.5, 6.0)}, source=SOURCE)
    row = android(twice)
    assert [item.median for item in row.measurements if item.origin == "measured"] == [2.0, 2.5]
    assert [item.ratio for item in row.latency] == [6.0]
    assert len([item for item in row.conditions if item.device == "pixel_8"]) == 1
    assert twice.budgets[1].passed is True


def test_what_the_run_measured_itself_stays_and_the_rest_is_added(report: Report) -> None:
    found = {"android": facts("host_cpu", 99.0, 0.1, sustained=SUSTAINED, on_device=ANSWERED)}
    after = taken_in(report, "host_cpu", found, source=SOURCE)
    row = android(after)
    assert (row.measurements, row.latency, after.budgets) == (android(report).measurements, (), report.budgets)
    here, _ = row.conditions
    assert here.sustained is not None and here.sustained.verdict == "slows down"
    assert here.on_device is not None
    assert here.on_device.metrics == {"accuracy": 0.9}, "scalars only"
    assert here.on_device.origin == "measured"
    assert after.artifact("baseline") == report.artifact("baseline")


def test_half_a_measurement_of_the_run_is_replaced(report: Report) -> None:
    partial = android(report).conditions[0].model_copy(update={"partial": "3 of 40 rounds were measured"})
    row = android(report).model_copy(update={"conditions": (partial,)})
    report = report.model_copy(update={"artifacts": (row,)})
    after = android(taken_in(report, "host_cpu", {"android": facts("host_cpu", 1.5, 2.0)}, source=SOURCE))
    assert after.measurement("latency_ms", "host_cpu").median == 1.5  # type: ignore[union-attr]
    assert "partial" not in (after.conditions[0].model_extra or {})


def test_a_device_that_cannot_run_a_file_changes_nothing_but_gives_its_reason_once(report: Report) -> None:
    cannot = {"device": "browser", "measurements": [], "reason": "Core ML does not run there"}
    once = taken_in(report, "browser", {"android": cannot}, source=SOURCE)
    twice = taken_in(once, "browser", {"android": cannot}, source=SOURCE)
    (said,) = [item for item in android(twice).conditions if item.device == "browser"]
    assert said.reason == "Core ML does not run there"
    assert android(taken_in(report, "pixel_8", {"android": cannot}, source=SOURCE)) == android(report)


def test_what_a_device_was_asked_beside_its_speed_is_part_of_the_conditions() -> None:
    found = conditions_of("host_cpu", facts("host_cpu", 1.0, 1.0, sustained=SUSTAINED, on_device=ANSWERED), None)
    assert found.sustained is not None and found.sustained.series[-1] == (59.5, 1.5)
    assert found.on_device is not None and found.on_device.agreement_with_host == 1.0
    assert found.model_extra == {"threads": 2, "busy": None}
    assert conditions_of("host_cpu", {}, "not reached").on_device is None


def test_devices_are_described_by_their_profiles() -> None:
    phone, other = devices(["pixel_8", "my_own_thing", "pixel_8"])
    assert (phone.title, phone.family, phone.chip, phone.link) == ("Google Pixel 8", "phone", "Google Tensor G3", None)
    assert (other.name, other.title) == ("my_own_thing", None)
