"""Did every target keep the pipeline's limits, and is none of them slower than what it came from?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgeforge.core.report import FALLING, ArtifactRow, BudgetRow, ParentComparison, StepResult
from edgeforge.pipeline import Budgets, Target
from edgeforge.plan import Plan, Step

UNQUANTIZED, BASELINE = "its unquantized file", "the baseline"
UNMEASURED = "could not be measured here"
ON_DEVICES = ("latency_ms", "latency_ratio")
"""Limits that are judged on each device."""
REMEDIES = {
    UNQUANTIZED: "`fallback: float` would ship the unquantized file",
    BASELINE: "leave channels in numbers that the device computes fast (`round_to`), or remove more of them",
}


def against_parents(plan: Plan, row: str, step: Step, facts: Mapping[str, Any]) -> Iterator[ParentComparison]:
    """What a benchmark says of a file beside what it came from: `facts` are those of `step`.

    A quantized file came from the same file unquantized, which may be the baseline's; one of a pruned or distilled
    model came, by way of it, from the baseline.
    """
    quantized = any(other.row == row and other.stage.kind == "quantize" for other in plan.steps)
    if quantized and (found := facts.get("parent_latency" if "parent" in step.inputs else "latency")):
        yield ParentComparison(parent=UNQUANTIZED, **found)
    if plan.compresses and (found := facts.get("latency")):
        yield ParentComparison(parent=BASELINE, **found)


def source_row(plan: Plan, results: Mapping[str, StepResult], row: str) -> tuple[str, str | None]:
    """The row whose file a target ships, and why where it is its fallback's.

    A quantized file that is broken is no reason: that is for the report to say.
    """
    fallback = plan.fallbacks.get(row)
    for step in plan.steps:
        if fallback is None or step.row != row or step.stage.kind != "benchmark":
            continue
        artifact = results[step.name].artifact if step.name in results else None
        for item in against_parents(plan, row, step, artifact.facts if artifact else {}):
            if item.parent == UNQUANTIZED and item.verdict == "slower" and item.ratio:
                slower = f"quantized, it takes {1 / item.ratio:.3g} times as long on {item.device}"
                return fallback, f"the unquantized file: {slower}"
    return row, None


def judge(budgets: Budgets, targets: Mapping[str, Target], rows: Mapping[str, ArtifactRow]) -> Iterator[BudgetRow]:
    """Every limit on every target. What could not be measured fails, unless the pipeline allows it.

    `targets` and `rows` are keyed by row name; ``rows["baseline"]`` must be there. Limits on latency are judged on
    each of a target's devices, by what was measured there: an estimate keeps no limit. A target that is measured slower
    than what it came from misses a limit that every pipeline has, until it says `slower_than_parent: allow`.
    """
    headline = next(iter(rows["baseline"].metrics), None)
    for name, target in targets.items():
        row = rows[name]
        change = row.deltas.get(headline) if headline else None
        worse = change if headline in FALLING else -change if change is not None else None
        size_mb = row.bytes / 1e6 if row.bytes else None
        values = {"accuracy_drop": worse, "size_mb": size_mb, "size_ratio": row.deltas.get("size_ratio")}
        for metric, value in values.items():
            yield from _judged(budgets, name, metric, value)
        for device in target.devices:
            for metric in ON_DEVICES:
                why = _unmeasured(row, device)
                yield from _judged(budgets, name, metric, value_on(row, metric, device), device=device, why=why)
        for item in row.parents:
            if item.verdict == "slower":
                yield _slower(budgets, name, item)


def judged_again(limit: BudgetRow, row: ArtifactRow) -> BudgetRow:
    """The same limit by what `row` says now; as it was where that is no more than before."""
    if limit.metric not in ON_DEVICES or limit.device is None:
        return limit
    value = value_on(row, limit.metric, limit.device)
    if value is None:
        return limit
    passed = _kept(limit.metric, value, limit.limit)
    return limit.model_copy(update={"value": value, "passed": passed, "reason": None})


def value_on(row: ArtifactRow, metric: str, device: str) -> float | None:
    """What a limit on a device is judged by; None where it was not measured there."""
    if metric == "latency_ratio":
        return next((item.ratio for item in row.latency if item.device == device), None)
    found = row.measurement(metric, device)
    return found.median if found is not None and found.origin == "measured" else None


def _unmeasured(row: ArtifactRow, device: str) -> str:
    latency = row.measurement("latency_ms", device)
    if latency is not None and latency.origin == "estimated" and latency.median is not None:
        return f"only estimated, as {latency.median:.3g} ms: a limit is kept by what was measured"
    if any(item.origin == "emulated" for item in row.measurements if item.device == device):
        return "an emulated processor has no times"
    return UNMEASURED


def _judged(
    budgets: Budgets, target: str, metric: str, value: float | None, *, device: str | None = None, why: str = UNMEASURED
) -> Iterator[BudgetRow]:
    limit = budgets.limit(metric, device)
    if limit is None:
        return
    passed = budgets.allow_unmeasured if value is None else _kept(metric, value, limit)
    yield BudgetRow(
        target=target,
        metric=metric,
        limit=limit,
        value=value,
        passed=passed,
        device=device,
        reason=why if value is None else None,
    )


def _kept(metric: str, value: float, limit: float) -> bool:
    slack = 1e-9 * max(1.0, abs(limit))  # 0.93 - 0.92 is a little more than 0.01 in binary
    return value >= limit - slack if metric.endswith("_ratio") else value <= limit + slack


def _slower(budgets: Budgets, target: str, found: ParentComparison) -> BudgetRow:
    allowed = budgets.slower_than_parent == "allow"
    said = f"slower than {found.parent}"
    return BudgetRow(
        target=target,
        metric="slower_than_parent",
        limit=1.0,
        value=found.ratio,
        passed=allowed,
        device=found.device,
        reason=f"{said}, which the pipeline allows" if allowed else f"{said}; {REMEDIES[found.parent]}",
    )
