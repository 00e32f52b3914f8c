"""Did every target keep the pipeline's limits?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from edgeforge.core.report import FALLING, ArtifactRow, BudgetRow
from edgeforge.pipeline import Budgets, Target


def judge(budgets: Budgets, targets: Mapping[str, Target], rows: Mapping[str, ArtifactRow]) -> Iterator[BudgetRow]:
    """Every limit on every target. What could not be measured fails, unless the pipeline allows it.

    `targets` and `rows` are keyed by row name; ``rows["baseline"]`` must be there. Limits on latency are judged on
    each of a target's devices.
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
