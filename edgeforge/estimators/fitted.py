"""Latency as a sum of what a graph asks for, with coefficients fitted to measurements on the very device."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import yaml
from pydantic import Field

from edgeforge import onnx_graph
from edgeforge.core.spec import Spec
from edgeforge.device import shipped_folder
from edgeforge.estimators import Estimate, Estimator, Known, Refusal, Unit, _features

FAR = 4.0
"""An estimate beyond the sizes it was fitted on by more than this factor is refused."""
SHARE_BEYOND = 0.1
"""How much more of its work a graph may spend in one class of operations than any measured model did."""
QUANTIZED_SHARE = 0.9


class Fit(Spec):
    """One latency model. Terms are those of `_features.Work.terms`; every coefficient is >= 0."""

    unit: Unit
    runtime: str
    precision: Literal["float", "w8a8", "w8a16"]
    rows: int = Field(ge=1, description="Measured models it was fitted to.")
    error: float = Field(ge=0, description="Median relative error of models left out of the fit.")
    interval80: tuple[float, float] = Field(description="Truth over estimate, from models left out of the fits.")
    gmacs: tuple[float, float] = Field(description="Smallest and largest of those models (10^9).")
    greatest_share: dict[str, float] = Field(description="Most that one of them spends in a class of operations.")
    coefficients_ms: dict[str, Annotated[float, Field(ge=0)]]


class DeviceFits(Spec):
    """``devices/estimates/<device>.yaml``, which benchmarks/device_estimator writes."""

    device: str
    measured_on: str
    source: str
    licence: str
    fits: tuple[Fit, ...]


class Fitted(Estimator):
    """Non-negative sums of work and traffic, one for each unit and precision of a device, fitted in
    benchmarks/device_estimator to latencies published by Qualcomm AI Hub.

    More work never takes less time, and no time is below zero. What no measured model resembles is refused: another
    precision, an operator or a share of attention that none of them has, a graph of quite another size.
    """

    kind: Literal["fitted"] = "fitted"

    format: ClassVar[str] = "onnx"

    def known(self, device: str) -> tuple[Known, ...]:
        found = fits_of(device)
        if found is None:
            return ()
        return tuple(
            Known(unit=fit.unit, runtime=fit.runtime, precision=fit.precision, rows=fit.rows, error=fit.error)
            for fit in found.fits
        )

    def digest(self, device: str) -> str:
        return hashlib.sha256(_path(device).read_bytes()).hexdigest()

    def estimate(self, device: str, folder: Path, format: str) -> tuple[Estimate | Refusal, ...]:
        fits = fits_of(device)
        if fits is None:
            return (Refusal(unit=None, reason=f"there are no measurements of other models on {device}"),)
        if format != self.format:
            return (Refusal(unit=None, reason=f"what was measured are ONNX files, and this is {format}"),)
        model = onnx_graph.load(folder)
        try:
            precision, work = _features.precision(model), _features.work(model)
        except _features.Uncounted as reason:
            return (Refusal(unit=None, reason=str(reason)),)
        if precision != "float" and work.quantized_share() < QUANTIZED_SHARE:
            share = f"{100 * work.quantized_share():.0f} %"
            return (Refusal(unit=None, reason=f"only {share} of its multiplications are in integers"),)
        units = dict.fromkeys(fit.unit for fit in fits.fits)
        return tuple(_on(unit, fits, precision, work) for unit in units)


def _on(unit: Unit, fits: DeviceFits, precision: str, work: _features.Work) -> Estimate | Refusal:
    fit = next((fit for fit in fits.fits if (fit.unit, fit.precision) == (unit, precision)), None)
    if fit is None:
        known = ", ".join(fit.precision for fit in fits.fits if fit.unit == unit)
        reason = (
            f"on the {unit.upper()} of {fits.device} there are measurements of {known}, and of no {precision} model"
        )
        return Refusal(unit=unit, reason=reason)
    beyond = _beyond(fit, work)
    if beyond is not None:
        return Refusal(unit=unit, reason=beyond)
    terms = work.terms()
    latency = sum(coefficient * terms[name] for name, coefficient in fit.coefficients_ms.items())
    low, high = fit.interval80
    return Estimate(
        unit=unit,
        runtime=fit.runtime,
        precision=precision,
        rows=fit.rows,
        error=fit.error,
        latency_ms=latency,
        interval80_ms=(latency * low, latency * high),
        source=fits.source,
    )


def _beyond(fit: Fit, work: _features.Work) -> str | None:
    """Why this graph resembles none of the measured ones, as a sentence; None where it does."""
    smallest, largest = fit.gmacs
    size = work.gmacs()
    what = f"{fit.precision} models measured on this {fit.unit.upper()}"
    if not smallest / FAR <= size <= largest * FAR:
        return f"it has {size:.3g} GMACs, and the {what} have {smallest:.3g} to {largest:.3g}"
    for name, share in work.shares().items():
        if share > fit.greatest_share.get(name, 0.0) + SHARE_BEYOND:
            most = 100 * fit.greatest_share.get(name, 0.0)
            return f"{100 * share:.0f} % of its work is in {name}, and none of the {what} has more than {most:.0f} %"
    return None


@cache
def fits_of(device: str) -> DeviceFits | None:
    """The fits of a device, by profile name; None where it has none."""
    path = _path(device)
    return DeviceFits.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _path(device: str) -> Path:
    return shipped_folder() / "estimates" / f"{device}.yaml"
