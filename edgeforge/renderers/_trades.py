"""Models that one stage trained together, side by side: exits of one model, or students that taught each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeforge.core.report import Report, StageRow
from edgeforge.renderers import _text


@dataclass(frozen=True)
class Trade:
    """One stage's models, a line of cells for each; `used` is the line that the chain went on with."""

    title: str
    note: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    used: int | None


def trades(report: Report) -> Iterator[Trade]:
    """Of every stage that trained several, in order."""
    for row in report.stages:
        facts = row.facts.model_extra or {}
        if facts.get("exits"):
            yield _exits(row, facts)
        if facts.get("members"):
            yield _members(row, facts)


def _exits(row: StageRow, facts: Mapping[str, Any]) -> Trade:
    exits: Sequence[Mapping[str, Any]] = facts["exits"]
    places = [one["after"] for one in exits]
    lines = tuple(
        (_ends(one["after"]), _text.metric(one["validation"], one["metric"]), *_footprint(one)) for one in exits
    )
    return Trade(
        title=f"Where the model could end: {row.name}",
        note="All exits were trained together; the metric is that of the validation split.",
        head=("ends", _text.words(exits[0]["metric"]), "parameters", "MACs", "size"),
        lines=lines,
        used=places.index(facts["used"]) if facts.get("used") in places else None,
    )


def _ends(place: int | str) -> str:
    return "at its own end" if isinstance(place, str) else f"after block {place}"


def _members(row: StageRow, facts: Mapping[str, Any]) -> Trade:
    members: Sequence[Mapping[str, Any]] = facts["members"]
    name = members[0]["metric"]
    lines = tuple(
        (
            f"{number}: {one['student']}",
            _text.metric(one["before"], name),
            _text.metric(one["after"], name),
            *_footprint(one),
        )
        for number, one in enumerate(members)
    )
    said = _text.words(name)
    used = facts.get("used")
    return Trade(
        title=f"Students that taught each other: {row.name}",
        note="All of them learned at the same time; the metric is that of the validation split.",
        head=("student", f"{said}, before", "after", "parameters", "MACs", "size"),
        lines=lines,
        used=used if isinstance(used, int) and used < len(members) else None,
    )


def _footprint(one: Mapping[str, Any]) -> tuple[str, str, str]:
    return _text.amount(one["params"]), _text.amount(one["macs"]), _text.size(one["size_bytes"])
