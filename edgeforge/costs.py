"""What a thousand answers cost, and after how many a file has paid for its making. Only what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgeforge import teaching
from edgeforge.core.report import ArtifactRow, MeasurementRow, StepResult
from edgeforge.core.report_teacher import Cost
from edgeforge.plan import Plan

Results = Mapping[str, StepResult]

BATCH_1 = "one answer at a time (batch 1), the median of what was measured on this device"
PER_TOKEN = "a language model's time is that of tokens it writes, without reading the prompt"
TEACHERS_FILE = "the teacher's time is its written file's, the baseline's, measured in the same rounds as this file"
MADE_HERE = (
    "making is the time of every step behind the file and not behind its teacher, on the machine that ran the "
    "pipeline; cached steps count with the time they took"
)
NO_POWER = "electricity, hardware and people's time are not counted: a student's own answers cost no money here"
PAID = "money is what the server's own token counts come to at the `prices` that the pipeline names"
ASSUMED = "{count} answers came without a token count, and are counted at the most they can have cost"


def of(plan: Plan, results: Results, row: ArtifactRow, *, source: str, made: str) -> tuple[Cost, ...]:
    """One for each device on which the row was measured; one without a device where only money is known.

    `source`: the row of the plan whose file is shipped, `made`: the step that wrote it. Empty where nobody taught.
    """
    if not (plan.lesson or teaching.writers(plan)):
        return ()
    paid = _paid(plan, results, teaching.behind(plan, made))
    per_token = plan.pipeline.task.answers_per == "token"
    shared: dict[str, Any] = {
        "unit": "tokens" if per_token else "answers",
        "making_seconds": _making_seconds(plan, results, made),
        **_money(paid),
    }
    always = (MADE_HERE, *((PAID, NO_POWER) if paid else ()), *_assumed(paid))
    found = []
    for latency in _latencies(row):
        teacher = _teachers_latency(plan, results, source, latency.device)
        notes = (BATCH_1, *((PER_TOKEN,) if per_token else ()), *((TEACHERS_FILE,) if teacher else ()), *always)
        times = _times(latency, teacher, row, shared["making_seconds"])
        found.append(Cost(**shared, **times, device=latency.device, runtime=latency.runtime, assumptions=notes))
    return tuple(found) or ((Cost(**shared, assumptions=always),) if paid else ())


# -- time


def _latencies(row: ArtifactRow) -> Iterator[MeasurementRow]:
    """What was measured, not estimated."""
    for item in row.measurements:
        if item.metric == "latency_ms" and item.origin == "measured" and item.median is not None:
            yield item


def _teachers_latency(plan: Plan, results: Results, source: str, device: str) -> float | None:
    """ms, in the rounds in which the file was measured: known where the teacher is the model in the baseline's file."""
    if plan.lesson is None or plan.lesson.teachers != (plan.baseline,):
        return None
    for step in plan.steps:
        if step.row == source and step.stage.kind == "benchmark" and getattr(step.stage, "device", None) == device:
            result = results.get(step.name)
            rows = result.artifact.facts.get("baseline", ()) if result and result.artifact else ()
            return next((row["median"] for row in rows if row["metric"] == "latency_ms"), None)
    return None


def _times(
    latency: MeasurementRow, teacher_ms: float | None, row: ArtifactRow, making_seconds: float
) -> dict[str, Any]:
    assert latency.median is not None
    found: dict[str, Any] = {"seconds_per_1000": latency.median}  # ms for one is s for a thousand
    if teacher_ms is None:
        return {**found, "time_reason": "the teacher's time per answer was not measured on this device and runtime"}
    found["teacher_seconds_per_1000"] = teacher_ms
    compared = next((item for item in row.latency if item.device == latency.device), None)
    if compared is None or compared.verdict != "faster":
        said = (
            "no difference in speed was shown" if compared is None or compared.verdict != "slower" else "it is slower"
        )
        return {**found, "time_reason": f"{said}, so no number of answers wins the time of making back"}
    saved = (teacher_ms - latency.median) / 1000
    if saved <= 0:  # the verdict is of paired rounds, whose median may differ from that of medians
        return {**found, "time_reason": "the medians show no difference in speed"}
    return {**found, "break_even_by_time": math.ceil(making_seconds / saved)}


def _making_seconds(plan: Plan, results: Results, made: str) -> float:
    taught_by = teaching.behind(plan, *plan.lesson.teachers) if plan.lesson else set()
    steps = teaching.behind(plan, made) - taught_by
    known = (results[name].artifact for name in steps if name in results)
    return sum(artifact.seconds for artifact in known if artifact is not None)


# -- money


@dataclass(frozen=True)
class _Account:
    """What one `generate` step paid."""

    cost: float
    answers: int
    assumed: int


def _paid(plan: Plan, results: Results, behind: set[str]) -> list[_Account]:
    """What the steps behind a file paid for answers, where prices are known."""
    found = []
    for name in plan.datasets:
        result = results.get(name)
        asked = result.artifact.facts.get("asked") if name in behind and result and result.artifact else None
        if asked and asked.get("cost") is not None and (count := sum(asked["answers"].values())):
            found.append(_Account(asked["cost"], count, asked.get("answers_without_usage", 0)))
    return found


def _money(paid: list[_Account]) -> dict[str, Any]:
    cost, answers = sum(one.cost for one in paid), sum(one.answers for one in paid)
    if not paid:
        return {}
    # A student's own answers cost no money, so its making is won back by as many answers as were bought for it.
    return {
        "making_money": cost,
        "teacher_money_per_1000": 1000 * cost / answers,
        "break_even_by_money": answers if cost else None,
    }


def _assumed(paid: list[_Account]) -> tuple[str, ...]:
    count = sum(one.assumed for one in paid)
    return (ASSUMED.format(count=count),) if count else ()
