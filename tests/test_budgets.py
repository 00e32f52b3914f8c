"""Limits, device by device."""

from __future__ import annotations

from typing import Any

import pytest

from edgeforge.budgets import judge, judged_again
from edgeforge.core.errors import ConfigurationError
from edgeforge.core.report import ArtifactRow, MeasurementRow
from edgeforge.exporters.onnx import Onnx
from edgeforge.pipeline import Budgets, Target, parse

PIPELINE = b"""
name: digits
task: image_classification
model: {kind: config, architecture: resnet}
targets: [{name: phone, export: onnx, devices: [host_cpu, pixel_8]}]
budgets: {latency_ms: 10, devices: {pixel_9: {latency_ms: 5}}}
"""


def latency(device: str, median: float, metric: str = "latency_ms", origin: str = "measured") -> MeasurementRow:
    said: dict[str, Any] = {"runtime": "onnxruntime", "metric": metric, "origin": origin, "n": 1, "p90": median}
    return MeasurementRow.model_validate({**said, "device": device, "median": median, "ci95": [median, median]})


def row(*measurements: MeasurementRow) -> ArtifactRow:
    return ArtifactRow(name="phone", status="shipped", format="onnx", measurements=measurements)


def judged(budgets: Budgets, found: ArtifactRow, *devices: str) -> dict[str | None, tuple[float, bool, str | None]]:
    target = Target(name="phone", export=Onnx(), devices=devices)
    rows = {"baseline": found, "phone": found}
    return {one.device: (one.limit, one.passed, one.reason) for one in judge(budgets, {"phone": target}, rows)}


def test_a_device_may_have_a_limit_of_its_own() -> None:
    budgets = Budgets.model_validate({"latency_ms": 10, "devices": {"pixel_8": {"latency_ms": 5}}})
    found = judged(budgets, row(latency("host_cpu", 7.0), latency("pixel_8", 7.0)), "host_cpu", "pixel_8")
    assert found == {"host_cpu": (10, True, None), "pixel_8": (5, False, None)}
    alone = Budgets.model_validate({"devices": {"pixel_8": {"latency_ms": 8}}})
    assert judged(alone, row(latency("pixel_8", 7.0)), "host_cpu", "pixel_8") == {"pixel_8": (8, True, None)}


def test_only_what_was_measured_keeps_a_limit() -> None:
    budgets = Budgets(latency_ms=10)
    estimated = row(latency("pixel_8", 2.0, origin="estimated"))
    reason = "only estimated, as 2 ms: a limit is kept by what was measured"
    assert judged(budgets, estimated, "pixel_8") == {"pixel_8": (10, False, reason)}
    counted = row(latency("emulated_a76", 1e6, "instructions", "emulated"))
    assert judged(budgets, counted, "emulated_a76")["emulated_a76"][2] == "an emulated processor has no times"


def test_a_limit_is_judged_again_where_there_is_a_number_now() -> None:
    target = Target(name="phone", export=Onnx(), devices=("pixel_8",))
    (before,) = judge(Budgets(latency_ms=5), {"phone": target}, {"baseline": row(), "phone": row()})
    assert (before.value, before.passed) == (None, False)
    assert judged_again(before, row()) is before
    after = judged_again(before, row(latency("pixel_8", 5.0)))
    assert (after.value, after.passed, after.reason) == (5.0, True, None)
    assert judged_again(before, row(latency("pixel_8", 5.1))).passed is False


def test_a_limit_on_a_device_that_no_target_names_is_refused() -> None:
    """It would never be judged, and nobody would notice."""
    with pytest.raises(ConfigurationError, match="no target names the device 'pixel_9'; perhaps you meant 'pixel_8'"):
        parse(PIPELINE, "test.yaml")
    assert parse(PIPELINE.replace(b"pixel_9", b"pixel_8"), "test.yaml").budgets.limit("latency_ms", "pixel_8") == 5
