"""`edgeforge report RUN --merge`: what a device measured, with the benchmark of a bundle, taken into a run's report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgeforge import measurements
from edgeforge.budgets import judged_again
from edgeforge.commands.summary import read
from edgeforge.core.artifact import hash_file
from edgeforge.core.errors import ConfigurationError, EnvironmentProblem
from edgeforge.core.measurement import Measurement
from edgeforge.core.report import ArtifactRow, BenchmarkConditions, MeasurementRow, Report
from edgeforge.core.spec import perhaps
from edgeforge.renderers import write_all

NAME = re.compile(r"[\w.,+ -]{1,80}")
"""What devices, runtimes and metrics may be called: reports show it, and a result comes from somewhere else."""


def merge(folder: Path, result: Path) -> Report:
    """Add the measurements of a result to the report of a run, and draw it again.

    Statistics are computed from the samples. Rows of the same device, runtime and metric are replaced, so merging twice
    changes nothing; estimates for the device stay beside. Limits on it are judged by what was measured.
    Raises ConfigurationError where the result is none, or of other files than this run's; EnvironmentProblem where the
    report cannot be written.
    """
    report = read(folder)
    found = _read(result)
    source = {"file": result.name, "sha256": hash_file(result), "created": found.created, "os": found.environment.os}
    rows = {row.name: row for row in report.artifacts}
    for measured in found.artifacts:
        rows[measured.name] = _merged(_own_row(report, measured, result), measured, source, result)
    new = list(dict.fromkeys(item.device for one in found.artifacts for item in one.measurements))
    budgets = tuple(
        judged_again(budget, rows[budget.target]) if budget.device in new and budget.target in rows else budget
        for budget in report.budgets
    )
    known = report.devices or measurements.devices(item.device for row in report.artifacts for item in row.conditions)
    added = measurements.devices(name for name in new if name not in {item.name for item in known})
    changed = {"artifacts": tuple(rows.values()), "budgets": budgets, "devices": (*known, *added)}
    report = report.model_copy(update=changed)
    try:
        write_all(report, folder)
    except OSError as error:
        raise EnvironmentProblem(f"the report cannot be written: {error.strerror}", where=str(folder)) from error
    return report


def _read(result: Path) -> Report:
    remedy = "give the JSON that the benchmark of a bundle prints"
    try:
        return Report.model_validate_json(result.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"it cannot be read: {error.strerror}", where=str(result), remedy=remedy) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise ConfigurationError(f"no result: {place}: {first['msg']}", where=str(result), remedy=remedy) from error


def _own_row(report: Report, measured: ArtifactRow, result: Path) -> ArtifactRow:
    """The row of the very file that was measured."""
    row = report.artifact(measured.name)
    if row is None:
        known = [item.name for item in report.artifacts]
        raise ConfigurationError(perhaps("this run has no file", measured.name, known), where=str(result))
    if row.sha256 is None or measured.sha256 != row.sha256:
        raise ConfigurationError(
            f"another file was measured than this run's '{row.name}': sha256 {measured.sha256}, not {row.sha256}",
            where=str(result),
            remedy="bundle this run again, and measure that",
        )
    return row


def _merged(row: ArtifactRow, measured: ArtifactRow, source: dict[str, str], result: Path) -> ArtifactRow:
    new = [_recomputed(item, result) for item in measured.measurements]
    if not new:
        raise ConfigurationError(f"nothing was measured of '{row.name}'", where=str(result))
    replaced = {(item.device, item.runtime, item.metric) for item in new}
    kept = [item for item in row.measurements if (item.device, item.runtime, item.metric) not in replaced]
    devices = {item.device for item in new}
    conditions = [item for item in row.conditions if item.device not in devices or measurements.estimates(item)]
    for device in sorted(devices):
        said = next((item for item in measured.conditions if item.device == device), None)
        conditions.append(_conditions(device, said, source))
    return row.model_copy(update={"measurements": (*kept, *new), "conditions": tuple(conditions)})


def _recomputed(item: MeasurementRow, result: Path) -> MeasurementRow:
    """The same samples, with statistics that were computed here."""
    for word in (item.device, item.runtime, item.metric):
        if not NAME.fullmatch(word):
            raise ConfigurationError(f"{word[:40]!r} is no name of a device, runtime or metric", where=str(result))
    if not item.samples or any(value < 0 for value in item.samples):
        raise ConfigurationError(f"{item.metric} on {item.device} has no samples, or negative ones", where=str(result))
    measurement = Measurement(
        metric=item.metric, device=item.device, runtime=item.runtime, origin=item.origin, samples=item.samples
    )
    return MeasurementRow.of(measurement, threads=item.threads)


def _conditions(device: str, said: BenchmarkConditions | None, source: dict[str, str]) -> BenchmarkConditions:
    """What the device says of itself, in words for the report, and where the numbers came from."""
    extra: dict[str, Any] = dict(said.model_extra or {}) if said else {}
    placement = extra.get("placement")
    words = [str(extra.get("hardware") or source["os"])]
    if isinstance(placement, dict):
        for units, counts in placement.items():
            if isinstance(counts, dict) and counts:
                placed = ", ".join(f"{count} on {unit}" for unit, count in sorted(counts.items()))
                words.append(f"operations with {units}: {placed}")
    heat = [extra.get(f"thermal_{when}") for when in ("before", "after")]
    if all(heat):
        words.append(f"thermal state {heat[0]} → {heat[1]}")
    words.append(f"from {source['file']}, measured {source['created']}")
    return BenchmarkConditions.model_validate(
        {**extra, "device": device, "hardware": "; ".join(words), "merged": source}
    )
