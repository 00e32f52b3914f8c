from __future__ import annotations

import json
from typing import Any

from edgeforge.core.report import Report
from edgeforge.renderers.json import Json


def test_report_json_has_the_fields_other_programs_read(report: Report) -> None:
    data = json.loads(Json().render(report))
    assert list(data)[:6] == ["schema", "pipeline", "run", "edgeforge", "created", "environment"]
    assert set(data["stages"][0]) >= {"name", "kind", "key", "cached", "seconds", "facts"}
    row = data["artifacts"][1]
    wanted = {"name", "status", "reason", "format", "path", "bytes", "sha256", "quantization", "lineage", "metrics"}
    assert set(row) >= wanted | {"parity", "measurements", "deltas"}
    measured = {"device", "runtime", "metric", "origin", "n", "median", "p90", "ci95"}
    assert set(row["measurements"][0]) >= measured
    assert set(data["budgets"][0]) >= {"target", "metric", "limit", "value", "passed"}
    assert all(isinstance(value, float) for value in row["metrics"].values())


def test_reading_it_back_gives_the_same_report(report: Report) -> None:
    assert Report.model_validate_json(Json().render(report)) == report


def test_no_nan_reaches_the_file(report_data: dict[str, Any]) -> None:
    report_data["artifacts"][1]["metrics"]["accuracy"] = float("nan")
    report_data["artifacts"][1]["quantization"]["sensitivity"] = {"conv": float("inf")}
    text = Json().render(Report.model_validate(report_data))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    data = json.loads(text, parse_constant=refuse)
    assert data["artifacts"][1]["metrics"]["accuracy"] is None
    assert data["artifacts"][1]["quantization"]["sensitivity"] == {"conv": None}
