"""The part of a report that devices make: what was measured, counted or estimated on each, and under which conditions.

No number here is without its `origin`; a device that gave none has a reason.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from edgeforge.core.measurement import Measurement, Origin
from edgeforge.core.report_part import Part

Verdict = Literal["faster", "slower", "no difference shown"]


class DeviceRow(Part):
    """A device that a target named, or that a file was measured on. `link` is null where no way to it is set up."""

    name: str
    title: str | None = None
    family: str | None = None
    chip: str | None = None
    link: str | None = None


class Basis(Part):
    """What an estimated number rests on.

    `interval80` holds the truth in four of five cases. `error` is the median relative error (0.2: 20 %) that the method
    made on a model left out of its fit, `rows` the number of measured models it was fitted to.
    """

    unit: str
    precision: str
    interval80: tuple[float, float]
    error: float
    rows: int
    source: str


class MeasurementRow(Part):
    """One quantity on one device: statistics of `n` samples, the unit is in the metric's name.

    An estimate has no samples, no p90 and no 95 % interval, and says in `basis` what it rests on.
    """

    device: str
    runtime: str
    metric: str
    origin: Origin
    n: int
    median: float | None
    p90: float | None
    ci95: tuple[float | None, float | None]
    samples: tuple[float, ...] = ()
    threads: int | None = None
    basis: Basis | None = None

    @classmethod
    def of(cls, measurement: Measurement, *, threads: int | None = None) -> MeasurementRow:
        """The row of a measurement, its statistics computed."""
        return cls(
            device=measurement.device,
            runtime=measurement.runtime,
            metric=measurement.metric,
            origin=measurement.origin,
            n=measurement.n,
            median=measurement.median,
            p90=measurement.p90,
            ci95=measurement.ci95,
            samples=measurement.samples,
            threads=threads,
        )


class LatencyComparison(Part):
    """Baseline latency over this file's, paired by round on one device: above 1 the file is faster.

    `verdict` says faster or slower only where the whole interval is further than 2 % from 1.
    """

    device: str
    runtime: str
    origin: Origin
    n: int
    ratio: float | None
    ci95: tuple[float | None, float | None]
    verdict: Verdict


class ParentComparison(LatencyComparison):
    """The same against what a file came from; `parent` says what that is."""

    parent: str


class Sustained(Part):
    """A file that ran without a pause: the last quarter's median latency over the first's, with its 95 % interval.

    `series` is (seconds since its begin, latency in ms) in order.
    """

    seconds: float
    first_quarter_ms: float
    last_quarter_ms: float
    ratio: float
    ci95: tuple[float, float]
    verdict: Literal["slows down", "speeds up", "steady"]
    series: tuple[tuple[float, float], ...] = ()
    threads: int | None = None


class OnDevice(Part):
    """Metrics of a device's own answers to the first `samples` test samples, and how they compare with this machine's.

    `metrics` is null where it gave none, and `reason` says why. `agreement_with_host` is the share of samples to which
    both give the same answer; null where this machine cannot run the file.
    """

    samples: int
    metrics: dict[str, float | None] | None
    origin: Origin | None = None
    reason: str | None = None
    agreement_with_host: float | None = None
    max_abs_difference_from_host: float | None = None


class BenchmarkConditions(Part):
    """Under which conditions one device was measured, or why it was not; and what else it was asked."""

    model_config = ConfigDict(extra="allow")

    device: str
    reason: str | None = None
    sustained: Sustained | None = None
    on_device: OnDevice | None = None
