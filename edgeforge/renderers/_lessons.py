"""What a report says of texts that a teacher wrote, arranged as tables: for Markdown and HTML alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgeforge.core.report import Report, StageRow
from edgeforge.renderers import _text

PASSED, PREFIX = "spec_passed", "spec_"
NOT_SHOWN = "input"
"""Of a spec: a model is given its inputs."""


@dataclass(frozen=True)
class Sieved:
    """What one filter left out, and for which reasons."""

    filter: str
    into: int
    out: int
    reasons: str


@dataclass(frozen=True)
class Lessons:
    """One stage's texts: how many, what they cost in words, and what became of the answers on the way."""

    stage: str
    said: str
    sieved: tuple[Sieved, ...]


@dataclass(frozen=True)
class Held:
    """Shares that hold to each part of a spec, by who wrote: the first columns are teachers."""

    writers: tuple[str, ...]
    lines: tuple[tuple[str, tuple[float | None, ...]], ...]


def lessons(report: Report) -> list[Lessons]:
    """Every stage that let a teacher answer questions."""
    return [_lessons(row, facts) for row, facts in _written(report)]


def held(report: Report) -> Held | None:
    """How far teachers, models and files hold to the spec; None where there is none."""
    columns: dict[str, Mapping[str, float | None]] = {}
    for row, facts in _written(report):
        if rates := facts.get("pass_rates"):
            whole = facts["yields"][0]
            shares = {_metric(name): rate["rate"] for name, rate in rates.items() if name != NOT_SHOWN}
            columns[f"{row.name}, the teacher"] = {
                PASSED: whole["out"] / whole["in"] if whole["in"] else None,
                **shares,
            }
    models = [(row.name, row.facts.metrics) for row in report.stages]
    for name, metrics in [*models, *((row.name, row.metrics) for row in report.artifacts)]:
        if PASSED in metrics:
            columns[name] = metrics
    names = dict.fromkeys(name for found in columns.values() for name in found if name.startswith(PREFIX))
    if not names:
        return None
    lines = tuple((_name(name), tuple(found.get(name) for found in columns.values())) for name in names)
    return Held(tuple(columns), lines)


def _written(report: Report) -> Iterator[tuple[StageRow, Mapping[str, Any]]]:
    for row in report.stages:
        facts = row.facts.model_extra or {}
        if "asked" in facts and "yields" in facts:
            yield row, facts


def _lessons(row: StageRow, facts: Mapping[str, Any]) -> Lessons:
    asked = facts["asked"]
    words = [f"{asked[name]:,} {name.replace('_', ' ')}" for name in ("input_tokens", "output_tokens") if name in asked]
    if asked.get("cost") is not None:
        words.append(f"they cost {_text.significant(asked['cost'])}")
    ends = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in asked["answers"].items())
    if asked.get("answered_before"):
        words.append(f"{asked['answered_before']} of them answered before")
    said = f"{facts['documents']} documents of {asked['wanted']} answers that were asked for ({ends})"
    if asked.get("opinions"):
        words.append(f"{asked['opinions']} of them to what was made up")
    sieved = tuple(
        Sieved(one["filter"], one["in"], one["out"], ", ".join(f"{n} {why}" for why, n in one["reasons"].items()))
        for one in facts["yields"]
    )
    return Lessons(row.name, "; ".join([said, *words]), sieved)


def _metric(name: str) -> str:
    return PREFIX + name.replace(" ", "_")


def _name(metric: str) -> str:
    return "all of it" if metric == PASSED else _text.words(metric.removeprefix(PREFIX))
