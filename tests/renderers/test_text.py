# ruff: noqa: RUF001 (numbers are typeset with real minus and multiplication signs)
from __future__ import annotations

import pytest

from edgeforge.core.report import BenchmarkConditions, BudgetRow, LatencyComparison
from edgeforge.renderers import _text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.500"),
        (0.035312, "0.0353"),
        (1.0, "1.00"),
        (9.999, "10.0"),
        (99.96, "100"),
        (431.26, "431"),
        (999.6, "1,000"),
        (12345, "12,345"),
        (-2.5, "−2.50"),
        (1.9e-6, "1.90e−06"),
    ],
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert _text.significant(value) == text


def test_sizes_and_amounts() -> None:
    assert [_text.size(n) for n in (None, 0, 999, 1000, 431_260, 8_812_004, 3 * 10**9)] == [
        "–", "0 B", "999 B", "1.00 kB", "431 kB", "8.81 MB", "3.00 GB",
    ]  # fmt: skip
    assert [_text.amount(n) for n in (None, 12, 402_000, 2_170_000, 16.4e6)] == ["–", "12", "402 k", "2.17 M", "16.4 M"]
    assert _text.tick_size(500_000) == "500 kB"


def test_points_are_always_signed() -> None:
    assert [_text.points(x) for x in (None, -0.0073, 0.012, 0.0, -0.00001)] == ["–", "−0.73", "+1.20", "±0.00", "±0.00"]
    assert _text.point_interval((-0.0109, 0.0037)) == "[−1.09, +0.37]"


def test_metrics_are_percent_where_they_are_shares() -> None:
    assert [_text.metric(x) for x in (None, 0.93541, 1.0, 17.23)] == ["–", "93.54 %", "100.00 %", "17.2"]


def test_durations() -> None:
    assert [_text.duration(s) for s in (4.23, 200, 3900)] == ["4.2 s", "3 min 20 s", "1 h 05 min"]


def comparison(ratio: float, verdict: str) -> LatencyComparison:
    return LatencyComparison.model_validate(
        {
            "device": "d",
            "runtime": "r",
            "origin": "measured",
            "n": 40,
            "ratio": ratio,
            "ci95": (ratio - 0.1, ratio + 0.1),
            "verdict": verdict,
        }
    )


def test_faster_is_said_only_with_the_verdict() -> None:
    assert _text.speed(comparison(6.36, "faster")) == "6.36× faster"
    assert _text.speed(comparison(0.5, "slower")) == "2.00× slower"
    assert _text.speed(comparison(1.02, "no difference shown")) == "1.02×, no difference shown"
    assert _text.speed(None) == "–"


def test_the_interval_is_that_of_the_number_beside_it() -> None:
    assert _text.speed_interval(comparison(6.36, "faster")) == "[6.26, 6.46]"
    assert _text.speed_interval(comparison(0.5, "slower")) == "[1.67, 2.50]"  # 1 / 0.6, 1 / 0.4
    assert _text.speed_interval(comparison(1.02, "no difference shown")) == "[0.920, 1.12]"
    assert _text.speed_interval(None) == ""


@pytest.mark.parametrize(
    ("metric", "limit", "value", "texts"),
    [
        ("accuracy_drop", 0.01, 0.0073, ("0.73 points", "≤ 1.00 points")),
        ("size_ratio", 20, 20.43, ("20.4×", "≥ 20.0×")),
        ("size_mb", 2, 0.431, ("0.431 MB", "≤ 2.00 MB")),
        ("latency_ms", 1, None, ("–", "≤ 1.00 ms")),
    ],
)
def test_budgets(metric: str, limit: float, value: float | None, texts: tuple[str, str]) -> None:
    row = BudgetRow(target="t", metric=metric, limit=limit, value=value, passed=True)
    assert _text.budget_numbers(row) == texts


def test_quantities_carry_their_unit() -> None:
    assert [_text.quantity(name) for name in ("latency_ms", "peak_rss_mb", "first_inference_ms", "tokens")] == [
        "latency, ms", "peak RSS, MB", "first inference, ms", "tokens",
    ]  # fmt: skip


def test_a_device_that_was_busy_hot_lost_or_never_tried_says_so() -> None:
    said = _text.conditions(
        BenchmarkConditions.model_validate(
            {
                "device": "phone",
                "temperature_c_before": 38.4,
                "temperature_c_after": 61.0,
                "partial": "6 of 40 rounds were measured: the device was lost",
                "busy": None,
                "hardware": "no one has run this",
            }
        )
    )
    assert said == [
        "temperature 38 → 61 °C",
        "6 of 40 rounds were measured: the device was lost",
        "no one has run this",
    ]
