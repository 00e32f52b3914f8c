from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgeforge.budgets import judge
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.core.report import ArtifactRow, BenchmarkConditions, MeasurementRow
from edgeforge.core.stage import Job
from edgeforge.estimators import Estimate as Estimated
from edgeforge.estimators import Refusal
from edgeforge.estimators.fitted import Fitted
from edgeforge.exporters.onnx import Onnx
from edgeforge.pipeline import Budgets, Target
from edgeforge.renderers import _text
from edgeforge.stages.estimate import Estimate

NPU = Estimated(
    unit="npu",
    runtime="ONNX Runtime",
    precision="w8a8",
    rows=15,
    error=0.084,
    latency_ms=2.0,
    interval80_ms=(1.5, 3.0),
    source="a table",
)
CPU = Refusal(unit="cpu", reason="there are no measurements of float models")


def performed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> dict[str, Any]:
    monkeypatch.setattr(Fitted, "estimate", lambda self, device, folder, format: answers)
    model = Artifact("k", "export", "onnx", tmp_path, "d", {}, {}, {})
    facts = Estimate(device="galaxy_s24").run({"model": model}, cast(Job, SimpleNamespace(folder=tmp_path)))
    assert json.loads((tmp_path / "measurements.json").read_text(encoding="utf-8")) == facts
    return dict(facts)


def test_an_estimate_is_marked_as_one_and_says_how_far_off_it_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = performed(tmp_path, monkeypatch, NPU, CPU)
    (row,) = map(MeasurementRow.model_validate, facts["measurements"])
    assert (row.origin, row.median, row.n, row.samples) == ("estimated", 2.0, 0, ())
    assert row.ci95 == (None, None)
    assert "NPU" in row.runtime
    assert "reason" not in facts
    said = "; ".join(_text.conditions(BenchmarkConditions.model_validate({"device": "d", **facts["conditions"]})))
    for part in ("estimated on the NPU (w8a8)", "[1.50, 3.00] ms", "15 measured models", "8.4", CPU.reason):
        assert part in said


def test_where_all_is_refused_there_is_no_row_and_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = performed(tmp_path, monkeypatch, CPU)
    assert facts["measurements"] == []
    assert facts["reason"] == f"no estimate: {CPU.reason}"


def test_an_estimate_is_never_taken_for_a_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = performed(tmp_path, monkeypatch, NPU)
    estimated = MeasurementRow.model_validate(facts["measurements"][0])
    real = estimated.model_copy(update={"device": "host_cpu", "origin": "measured", "median": 9.0})
    row = ArtifactRow(name="a", status="shipped", format="onnx", measurements=(estimated, real))
    assert row.measurement("latency_ms") is real
    assert row.measurement("latency_ms", "galaxy_s24") is estimated
    target = Target(name="a", export=Onnx(), devices=("galaxy_s24", "host_cpu"))
    rows = {"baseline": row, "a": row}
    first, second = judge(Budgets(latency_ms=10), {"a": target}, rows)
    assert (first.value, first.passed) == (None, False)
    assert first.reason == "only estimated, as 2 ms: a limit is kept by what was measured"
    assert (second.value, second.passed) == (9.0, True)


def test_the_coefficients_are_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Estimate(device="galaxy_s24")
    before = stage.identity()
    assert "host" not in before
    monkeypatch.setattr(Fitted, "digest", lambda self, device: "other")
    assert stage.identity() != before


def test_a_device_nobody_measured_is_refused_before_any_work() -> None:
    with pytest.raises(IncompatiblePlanError, match="iphone_16"):
        Estimate(device="iphone_16").check()
