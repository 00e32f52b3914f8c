"""Did every target keep the pipeline's limits, and is none of them slower than what it came from?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgeforge.core.report import FALLING, ArtifactRow, BudgetRow, ParentComparison, StepResult
from edgeforge.pipeline import Budgets, Target
from edgeforge.plan import Plan, Step

UNQUANTIZED, BASELINE = "its unquantized file", "the baseline"
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
    each of a target's devices. A target that is measured slower than what it came from misses a limit that every
    pipeline has, until it says `slower_than_parent: allow`.
    """
    headline = next(iter(rows["baseline"].metrics), None)
    for name, target in targets.items():
        row = rows[name]
        change = row.deltas.get(headline) if headline else None
        worse = change if headline in FALLING else -change if change is not None else None
        yield from _limit(budgets, name, "accuracy_drop", worse)
        yield from _limit(budgets, name, "size_mb", row.bytes / 1e6 if row.bytes else None)
        yield from _limit(budgets, name, "size_ratio", row.deltas.get("size_ratio"))
        for device in target.devices:
            latency = row.measurement("latency_ms", device)
            if latency is not None and latency.origin == "estimated":
                latency = None  # a limit is kept by what was measured
            ratio = next((item.ratio for item in row.latency if item.device == device), None)
            yield from _limit(budgets, name, "latency_ms", latency.median if latency else None, device=device)
            yield from _limit(budgets, name, "latency_ratio", ratio, device=device)
        for item in row.parents:
            if item.verdict == "slower":
                yield _slower(budgets, name, item)


def _limit(
    budgets: Budgets, target: str, metric: str, value: float | None, *, device: str | None = None
) -> Iterator[BudgetRow]:
    limit = getattr(budgets, metric)
    if limit is None:
        return
    if value is None:
        passed, reason = budgets.allow_unmeasured, "could not be measured here"
    else:
        at_least = metric.endswith("_ratio")
        slack = 1e-9 * max(1.0, abs(limit))  # 0.93 - 0.92 is a little more than 0.01 in binary
        passed, reason = (value >= limit - slack if at_least else value <= limit + slack), None
    yield BudgetRow(target=target, metric=metric, limit=limit, value=value, passed=passed, device=device, reason=reason)


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
