"""Non-negative fits of latency, a shape shared by the devices of a family and each device's own deviation from it.

All errors are relative: a factor of two too much weighs as much as a factor of two too little. Nothing here is
specific to processors; `run.py` says which terms a latency is a sum of.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

Vector = np.ndarray
Table = Mapping[str, Mapping[str, float]]
"""Device -> model -> measured latency (ms)."""

PULL = 0.1
"""How strongly a device's coefficients are held to the shared shape, against the weight of its own rows."""
SPREAD = 0.2
"""Log error from which on a row counts less (Huber): some graphs here are not quite those that were measured."""
ROUNDS, ALTERNATIONS = 10, 4


@dataclass(frozen=True)
class Prior:
    """Coefficients to stay near."""

    coefficients: Vector
    weight: float = PULL


def nonnegative(terms: Vector, latency: Vector, *, near: Prior | None = None) -> Vector:
    """Coefficients (K,) >= 0 of `terms` (N, K) for `latency` (N,), by iteratively reweighted least squares.

    Rows are weighted by 1 / sqrt(predicted x measured), since (p - y) / sqrt(p y) = 2 sinh(log(p / y) / 2): the log
    ratio's square for small errors, and symmetric for large ones.
    """
    predicted, robust = latency.copy(), np.ones(len(latency))
    coefficients = np.zeros(terms.shape[1])
    for _ in range(ROUNDS):
        weight = robust / np.sqrt(predicted * latency)
        rows, wanted = terms * weight[:, None], latency * weight
        if near is not None:
            stiffness = np.sqrt(near.weight * (rows**2).sum(axis=0)).clip(1e-9)
            rows = np.concatenate([rows, np.diag(stiffness)])
            wanted = np.concatenate([wanted, stiffness * near.coefficients])
        coefficients, _ = nnls(rows, wanted, maxiter=1000)
        fitted = np.maximum(terms @ coefficients, 1e-3 * latency)
        predicted = np.clip(fitted, latency / 4, latency * 4)
        robust = np.sqrt(np.minimum(1, SPREAD / np.maximum(abs(np.log(fitted / latency)), 1e-6)))
    return coefficients


def fit(terms: Mapping[str, Vector], measured: Table, models: Collection[str]) -> dict[str, Vector]:
    """Device -> coefficients, from the rows of these models alone."""
    shape, speed = _shared(terms, measured, models)
    found = {}
    for device in speed:
        mine = [model for model in measured[device] if model in models]
        rows = np.array([terms[model] for model in mine])
        latency = np.array([measured[device][model] for model in mine])
        found[device] = nonnegative(rows, latency, near=Prior(shape * speed[device]))
    return found


def _shared(terms: Mapping[str, Vector], measured: Table, models: Collection[str]) -> tuple[Vector, dict[str, float]]:
    """The coefficients that all devices share up to a factor, and each device's factor: fitted in turns."""
    rows = [(device, model) for device in measured for model in measured[device] if model in models]
    stacked = np.array([terms[model] for _, model in rows])
    latency = np.array([measured[device][model] for device, model in rows])
    owner = np.array([device for device, _ in rows])
    speed = {device: float(np.exp(np.log(latency[owner == device]).mean())) for device in dict.fromkeys(owner)}
    shape = np.zeros(stacked.shape[1])
    for _ in range(ALTERNATIONS):
        shape = nonnegative(stacked, latency / np.array([speed[device] for device in owner]))
        ratio = np.log(latency / np.maximum(stacked @ shape, 1e-9))
        speed = {device: float(np.exp(np.median(ratio[owner == device]))) for device in speed}
    return shape, speed


def leave_one_out(terms: Mapping[str, Vector], measured: Table) -> dict[str, dict[str, float]]:
    """Device -> model -> log(estimate / measured), where no row of that model on any device was in the fit."""
    models = sorted({model for row in measured.values() for model in row})
    found: dict[str, dict[str, float]] = {device: {} for device in measured}
    for left_out in models:
        fitted = fit(terms, measured, set(models) - {left_out})
        for device, coefficients in fitted.items():
            if left_out in measured[device]:
                estimate = max(float(terms[left_out] @ coefficients), 1e-6)
                found[device][left_out] = float(np.log(estimate / measured[device][left_out]))
    return found


def interval80(errors: Mapping[str, Mapping[str, float]], *, without: str | None = None) -> tuple[float, float]:
    """The interval of truth / estimate that holds 80 % of what is to come, from log errors of models left out.

    Quantiles of errors that the fit has seen are too narrow by (n + 1) / n in their level, n the number of models
    (conformal prediction). That is exact for independent rows; here several devices show the same model, and half of
    that raise is what covers 80 %: see README.md. `without` leaves out a model, to compare its own errors with it.
    """
    kept = [error for row in errors.values() for model, error in row.items() if model != without]
    n = len({model for row in errors.values() for model in row if model != without})
    level = min(1.0, 0.9 * (n + 0.5) / n)
    high, low = np.quantile(kept, [level, 1 - level])
    return float(np.exp(-high)), float(np.exp(-low))


def coverage(errors: Mapping[str, Mapping[str, float]]) -> tuple[int, int]:
    """How many rows lie in the interval that the other models' errors give, of how many."""
    inside, rows = 0, 0
    for row in errors.values():
        for model, error in row.items():
            low, high = interval80(errors, without=model)
            rows += 1
            inside += bool(low <= np.exp(-error) <= high)
    return inside, rows


def median_error(errors: Mapping[str, float]) -> float:
    """Median of |estimate / measured - 1|."""
    return float(np.median([abs(np.exp(error) - 1) for error in errors.values()]))
