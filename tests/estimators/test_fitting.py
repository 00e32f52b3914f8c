"""The benchmark's fits, on data whose law is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.device_estimator import fitting

LAW = np.array([0.3, 2.0, 0.0, 0.5])


def world(models: int, noise: float, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """Terms of models, and latencies on three devices that share one law up to their speed."""
    rng = np.random.default_rng(seed)
    terms = {f"m{i}": np.array([1.0, *rng.lognormal(0, 1.5, 3)]) for i in range(models)}
    table = {
        device: {name: float(speed * (row @ LAW) * rng.lognormal(0, noise)) for name, row in terms.items()}
        for device, speed in {"slow": 8.0, "middle": 2.0, "fast": 1.0}.items()
    }
    return terms, table


def test_a_law_without_noise_is_found_exactly() -> None:
    terms, table = world(20, 0.0)
    found = fitting.fit(terms, table, terms.keys())
    for device, speed in {"slow": 8.0, "middle": 2.0, "fast": 1.0}.items():
        np.testing.assert_allclose(found[device], speed * LAW, rtol=1e-3, atol=1e-6 * speed)
    errors = fitting.leave_one_out(terms, table)
    assert max(abs(error) for row in errors.values() for error in row.values()) < 1e-3


def test_coefficients_are_never_negative() -> None:
    rng = np.random.default_rng(1)
    terms = rng.lognormal(size=(12, 3))
    against = 5 / (1 + terms[:, 0])  # falls where the first term grows
    assert (fitting.nonnegative(terms, against) >= 0).all()


def test_a_row_that_fits_nothing_does_not_bend_the_others() -> None:
    terms, table = world(20, 0.0)
    table["fast"]["m3"] *= 30
    found = fitting.fit(terms, table, terms.keys())
    for name, row in terms.items():
        if name != "m3":
            assert row @ found["fast"] == pytest.approx(table["fast"][name], rel=0.1)


def test_the_model_left_out_does_not_help_itself() -> None:
    terms, table = world(15, 0.05)
    honest = fitting.leave_one_out(terms, table)["fast"]["m0"]
    for device in table:
        table[device]["m0"] *= 3
    again = fitting.leave_one_out(terms, table)["fast"]["m0"]
    assert again == pytest.approx(honest - np.log(3))  # the estimate is the same, the truth three times as long


def test_intervals_hold_four_of_five() -> None:
    inside = rows = 0
    for seed in range(6):
        terms, table = world(16, 0.3, seed)
        covered, count = fitting.coverage(fitting.leave_one_out(terms, table))
        inside, rows = inside + covered, rows + count
    assert 0.7 < inside / rows < 0.9


def test_median_error_is_of_the_ratio() -> None:
    errors = {"a": np.log(2), "b": np.log(0.5), "c": 0.0}
    assert fitting.median_error(errors) == pytest.approx(0.5)
