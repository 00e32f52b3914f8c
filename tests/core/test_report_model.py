from __future__ import annotations

import json
import statistics

import pytest

from edgeforge.core.measurement import Measurement
from edgeforge.core.report import MeasurementRow, Parity, Report, StageFacts, finite

MINIMAL = {
    "pipeline": "p",
    "run": "r",
    "edgeforge": "0",
    "created": "2026-01-01T00:00:00+00:00",
    "environment": {"cpu": "c", "cores": 1, "ram_gb": 1.0, "os": "o", "python": "3", "packages": {}},
    "stages": [],
    "artifacts": [],
}


def test_numbers_that_do_not_exist_are_null() -> None:
    nan, inf = float("nan"), float("inf")
    assert finite({"a": [nan, 1.0, (inf, -inf)], "b": {"c": nan}}) == {"a": [None, 1.0, [None, None]], "b": {"c": None}}
    parity = Parity.model_validate({"max_abs_error": inf, "cosine": nan, "extra": {"deep": nan}})
    assert json.loads(parity.model_dump_json()) == {
        "reference": None,
        "max_abs_error": None,
        "tolerance": None,
        "cosine": None,
        "passed": None,
        "extra": {"deep": None},
    }
    facts = StageFacts.model_validate({"params": 1, "history": {"loss": [1.0, nan]}})
    assert "NaN" not in facts.model_dump_json()


def test_report_json_carries_the_schema_and_reads_back_equal() -> None:
    report = Report.model_validate(MINIMAL)
    data = json.loads(report.to_json())
    assert data["schema"] == "edgeforge.report/1"
    assert "schema_" not in data
    assert Report.model_validate_json(report.to_json()) == report


def test_readers_ignore_fields_they_do_not_know() -> None:
    newer = {
        **MINIMAL,
        "carbon": 3,
        "budgets": [{"target": "t", "metric": "m", "limit": 1, "value": None, "passed": True, "x": 1}],
    }
    assert Report.model_validate(newer).budgets[0].target == "t"
    with pytest.raises(ValueError, match=r"edgeforge\.report/1"):
        Report.model_validate({**MINIMAL, "schema": "edgeforge.report/2"})


def test_the_row_of_a_measurement_has_its_statistics() -> None:
    samples = (5.0, 1.0, 2.0, 4.0, 3.0)
    row = MeasurementRow.of(
        Measurement(metric="latency_ms", device="d", runtime="r", origin="emulated", samples=samples), threads=2
    )
    assert (row.n, row.median, row.origin, row.threads) == (5, statistics.median(samples), "emulated", 2)
    assert row.p90 == pytest.approx(4.6)  # numpy.percentile([1, 2, 3, 4, 5], 90)
    low, high = row.ci95
    assert low is not None and high is not None and 1 <= low <= 3 <= high <= 5
