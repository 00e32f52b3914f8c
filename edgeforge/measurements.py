"""What benchmarks and estimates said, as rows of a report: those of a run, and those that came after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgeforge.budgets import against_parents, judged_again
from edgeforge.core.report import (
    ArtifactRow,
    BenchmarkConditions,
    DeviceRow,
    LatencyComparison,
    MeasurementRow,
    OnDevice,
    ParentComparison,
    Report,
    StepResult,
    Sustained,
)
from edgeforge.device import profiles
from edgeforge.links import link_of
from edgeforge.plan import Plan
from edgeforge.runtimes import runtime_for

UNREACHABLE = "this device cannot be reached from here yet"
MERGED = "merged"
"""In the conditions of what was not measured by the run itself: where it came from."""


def of_row(plan: Plan, results: Mapping[str, StepResult], row: str, devices: Sequence[str]) -> dict[str, Any]:
    """The fields of an `ArtifactRow` that devices make; one that gave nothing has its reason in `conditions`."""
    measurements: list[MeasurementRow] = []
    latency: list[LatencyComparison] = []
    parents: list[ParentComparison] = []
    conditions: list[BenchmarkConditions] = []
    for step in plan.steps:
        if step.row != row or step.stage.kind not in ("benchmark", "estimate"):
            continue
        result = results.get(step.name)
        facts = result.artifact.facts if result and result.artifact else {}
        measurements += _measured(facts)
        latency += _compared(facts)
        parents += against_parents(plan, row, step, facts)
        why = facts.get("reason") or (result.error if result else "not reached")
        conditions.append(conditions_of(getattr(step.stage, "device", ""), facts, why))
    for device in sorted(set(devices) - {item.device for item in conditions}):
        conditions.append(BenchmarkConditions(device=device, reason=_not_asked(plan, row, device)))
    return {
        "measurements": tuple(measurements),
        "latency": tuple(latency),
        "parents": tuple(parents),
        "conditions": tuple(conditions),
    }


def _not_asked(plan: Plan, row: str, device: str) -> str:
    """Why the plan has no step that measures there."""
    known, exports = profiles().get(device), [step for step in plan.steps if step.name == f"{row}.export"]
    runtime = runtime_for(exports[0].stage.makes_format()) if exports else None
    if known is None or known.link is None or runtime is None:
        return f"{UNREACHABLE}; {known.by_bundle}" if known and known.by_bundle else UNREACHABLE
    return link_of(known.link, known.connection).unavailable(runtime.kind) or UNREACHABLE


def conditions_of(device: str, facts: Mapping[str, Any], reason: str | None) -> BenchmarkConditions:
    """Under which conditions the facts of a benchmark or an estimate hold, and what else the device was asked."""
    known = {name: facts[name] for name in ("threads", "min_sample_ms", "floor") if name in facts}
    said = {**known, **facts.get("conditions", {}), "device": device, "reason": reason}
    if sustained := facts.get("sustained"):
        said["sustained"] = Sustained.model_validate({**sustained, "threads": facts.get("threads")})
    if answered := facts.get("on_device"):
        said["on_device"] = _answered(answered, facts)
    return BenchmarkConditions.model_validate(said)


def _answered(answered: Mapping[str, Any], facts: Mapping[str, Any]) -> OnDevice:
    metrics = answered.get("metrics")
    if metrics is not None:
        metrics = {name: value for name, value in metrics.items() if not isinstance(value, Mapping)}
    origin = next((item["origin"] for item in facts.get("measurements", ())), None)
    return OnDevice.model_validate({**answered, "metrics": metrics, "origin": origin})


def _measured(facts: Mapping[str, Any]) -> list[MeasurementRow]:
    return [MeasurementRow.model_validate(item) for item in facts.get("measurements", ())]


def _compared(facts: Mapping[str, Any]) -> list[LatencyComparison]:
    return [LatencyComparison.model_validate(facts["latency"])] if facts.get("latency") else []


def devices(names: Iterable[str]) -> tuple[DeviceRow, ...]:
    """What the profiles say of devices, each once, in order; of one without a profile there is only its name."""
    known, found = profiles(), {}
    for name in names:
        profile = known.get(name)
        found[name] = DeviceRow(name=name)
        if profile is not None:
            chip = profile.chip.value if profile.chip else None
            found[name] = DeviceRow(name=name, title=profile.title, family=profile.family, chip=chip, link=profile.link)
    return tuple(found.values())


# -- after the run


def taken_in(
    report: Report, device: str, found: Mapping[str, Mapping[str, Any]], *, source: Mapping[str, str]
) -> Report:
    """The report with what a later benchmark found on a device: artifact name -> its facts.

    What the run itself measured there stays: it was paired with what every file came from, and budgets were judged by
    it. How a file held out, and what the device answered, are added to it. Where the run measured nothing, or lost the
    device halfway, the later benchmark's rows take its place, and limits on this device are judged by them. `source`
    says where they came from.
    """
    rows = [_with(row, device, found[row.name], source) if row.name in found else row for row in report.artifacts]
    by_name = {row.name: row for row in rows}
    limits = tuple(
        judged_again(limit, by_name[limit.target]) if limit.device == device and limit.target in found else limit
        for limit in report.budgets
    )
    known = report.devices or devices(item.device for row in report.artifacts for item in row.conditions)
    added = () if device in {item.name for item in known} else devices([device])
    return report.model_copy(update={"artifacts": tuple(rows), "budgets": limits, "devices": (*known, *added)})


def _with(row: ArtifactRow, device: str, facts: Mapping[str, Any], source: Mapping[str, str]) -> ArtifactRow:
    here = [item for item in row.conditions if item.device == device and not estimates(item)]
    reason = facts.get("reason")
    if reason and here:
        return row  # it says no more than what is there
    new = conditions_of(device, facts, reason)
    own = next((item for item in here if _by_the_run(item)), None)
    if own is not None:
        asked = {name: value for name in ("sustained", "on_device") if (value := getattr(new, name)) is not None}
        kept = [item.model_copy(update=asked) if item is own else item for item in row.conditions]
        return row.model_copy(update={"conditions": tuple(kept)})
    measurements = [item for item in row.measurements if item.device != device or item.origin == "estimated"]
    latency = (*(item for item in row.latency if item.device != device), *_compared(facts))
    marked = new.model_copy(update={MERGED: dict(source)})
    changed: dict[str, Any] = {
        "measurements": (*measurements, *_measured(facts)),
        "latency": latency,
        "conditions": (*(item for item in row.conditions if item not in here), marked),
    }
    if row.deltas and latency:
        changed["deltas"] = {**row.deltas, "latency_ratio": latency[0].ratio}
    return row.model_copy(update=changed)


def estimates(item: BenchmarkConditions) -> bool:
    """Whether these are the conditions of estimates, beside which a device may be measured."""
    return "estimates" in (item.model_extra or {})


def _by_the_run(item: BenchmarkConditions) -> bool:
    extra = item.model_extra or {}
    return item.reason is None and not extra.get("partial") and MERGED not in extra
