"""What a report says of a teacher, arranged as tables: for Markdown and HTML alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeforge.core.report import ArtifactRow, Report
from edgeforge.core.report_teacher import Cost, DarkKnowledge, GroupChange, Pair, Source, TeacherComparison
from edgeforge.renderers import _text

MOST_CLASSES = 40
MOST_PAIRS = 8
DIGEST = 12
_WHAT = {"model": "model", "teacher": "teacher", "data": "data", "prompts": "prompts"}
_KINDS = {"stage": "an earlier stage", "config": "new, from a config", "windows": "beginnings of training texts"}


@dataclass(frozen=True)
class Line:
    """One group of test samples: the teacher's accuracy, and what each column's file changed.

    `bars` are the changes as percent of the largest of the table.
    """

    name: str
    n: int
    teacher: float | None
    changes: tuple[GroupChange | None, ...]
    bars: tuple[float, ...]


@dataclass(frozen=True)
class Table:
    """Lines under a title, one column for each of the report's `columns`; `left_out` counts lines beyond the most."""

    title: str
    lines: tuple[Line, ...]
    left_out: int = 0


@dataclass(frozen=True)
class PairLine:
    """One pair of classes: the teacher's probability, and each column's probability and rank."""

    name: str
    teacher: float
    students: tuple[tuple[float, int] | None, ...]


def rows(report: Report) -> list[tuple[ArtifactRow, TeacherComparison]]:
    """Every file that was compared with a teacher, or could not be."""
    return [(row, row.against_teacher) for row in report.artifacts if row.against_teacher is not None]


def compared(report: Report) -> list[tuple[ArtifactRow, TeacherComparison]]:
    """The files whose answers stand beside the teacher's."""
    return [(row, found) for row, found in rows(report) if found.reason is None]


def columns(report: Report) -> list[tuple[ArtifactRow, TeacherComparison]]:
    """Those that are shipped, or all where none is; without the baseline where it is the teacher as a file."""
    known = [
        (row, found)
        for row, found in compared(report)
        if found.accuracy is not None and not (row.name == "baseline" and report.teacher == report.baseline)
    ]
    return [(row, found) for row, found in known if row.status == "shipped"] or known


def class_table(report: Report) -> Table | None:
    """Every class, the one that lost most first."""
    found = [comparison.classes for _, comparison in columns(report)]
    if not found or not found[0]:
        return None
    names = [one.name for one in found[0]]
    lines = sorted(_lines(names, found), key=lambda line: min((_changed(one) for one in line.changes), default=0.0))
    return Table("class", tuple(lines[:MOST_CLASSES]), max(0, len(lines) - MOST_CLASSES))


def slice_tables(report: Report) -> list[Table]:
    """One for each rule, its groups in their own order."""
    found = [{one.rule: one.groups for one in comparison.slices} for _, comparison in columns(report)]
    if not found:
        return []
    return [
        Table(rule, tuple(_lines([one.name for one in groups], [known.get(rule, ()) for known in found])))
        for rule, groups in found[0].items()
    ]


def _lines(names: Sequence[str], found: Sequence[Sequence[GroupChange]]) -> list[Line]:
    by_name = [{one.name: one for one in groups} for groups in found]
    changes = {name: tuple(groups.get(name) for groups in by_name) for name in names}
    largest = max((abs(_changed(one)) for line in changes.values() for one in line), default=0.0) or 1.0
    lines = []
    for name, line in changes.items():
        first = next((one for one in line if one is not None), None)
        bars = tuple(round(100 * abs(_changed(one)) / largest, 1) for one in line)
        lines.append(Line(name, first.n if first else 0, first.teacher if first else None, line, bars))
    return lines


def _changed(one: GroupChange | None) -> float:
    return 0.0 if one is None or one.change is None else one.change


# -- classes that look alike


def pair_lines(report: Report) -> list[PairLine]:
    """The pairs that the teacher finds most alike, and those that a student has among its own, behind them."""
    known = [found.dark_knowledge for _, found in columns(report)]
    shown: dict[tuple[str, str], Pair] = {}
    for one in known:
        for pair in one.teacher_top[:MOST_PAIRS] if one else ():
            shown.setdefault(pair.classes, pair)
    for one in known:
        for pair in one.student_top[: MOST_PAIRS // 2] if one else ():
            shown.setdefault(pair.classes, pair)
    return [
        PairLine(_named(pair), pair.teacher, tuple(_seen(one, classes) for one in known))
        for classes, pair in shown.items()
    ]


def _named(pair: Pair) -> str:
    return " / ".join(pair.classes)


def _seen(one: DarkKnowledge | None, classes: tuple[str, str]) -> tuple[float, int] | None:
    """A student's probability and rank of a pair; None where it is in neither list."""
    for pair in (*one.teacher_top, *one.student_top) if one else ():
        if pair.classes == classes:
            return pair.student, pair.student_rank
    return None


# -- where it comes from, and what it costs


def source_cells(source: Source) -> tuple[str, str, str, str, str]:
    """What, where in the chain, where from, licence, digest."""
    kind = _KINDS.get(source.kind, _text.words(source.kind))
    details = ", ".join(f"{_text.words(name)} {_said(value)}" for name, value in source.details.items())
    place = source.place if source.place != source.step else None
    where = ": ".join(filter(None, (kind, place)))
    licence = source.licence + (f" ({source.licence_from})" if source.licence_from else "")
    digest = f"{source.digest[:DIGEST]}…" if source.digest else _text.NONE
    return (
        _WHAT[source.what],
        source.step or _text.NONE,
        f"{where} ({details})" if details else where,
        licence,
        digest,
    )


def _said(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def costs(report: Report) -> list[tuple[ArtifactRow, Cost]]:
    """Every file's, device by device."""
    return [(row, cost) for row in report.artifacts for cost in row.costs]


def has_money(report: Report) -> bool:
    """Whether a teacher was paid."""
    return any(cost.making_money is not None for _, cost in costs(report))


def assumptions(report: Report) -> list[str]:
    """What the costs rest on, each once."""
    return list(dict.fromkeys(line for _, cost in costs(report) for line in cost.assumptions))


def cost_cells(cost: Cost) -> Mapping[str, str]:
    """A cost in words, by column."""
    per = "" if cost.unit == "answers" else " (tokens)"
    after = _text.NONE if cost.break_even_by_time is None else f"{_count(cost.break_even_by_time)} {cost.unit}"
    return {
        "own": _seconds(cost.seconds_per_1000) + (per if cost.seconds_per_1000 is not None else ""),
        "teacher": _seconds(cost.teacher_seconds_per_1000),
        "making": _text.NONE if cost.making_seconds is None else _text.duration(cost.making_seconds),
        "time": after if cost.break_even_by_time is not None else cost.time_reason or _text.NONE,
        "teacher_money": _money(cost.teacher_money_per_1000),
        "making_money": _money(cost.making_money),
        "money": _text.NONE if cost.break_even_by_money is None else f"{_count(cost.break_even_by_money)} answers",
    }


def _seconds(value: float | None) -> str:
    return _text.NONE if value is None else f"{_text.significant(value)} s"


def _count(value: int) -> str:
    return f"{value:,}"


def _money(value: float | None) -> str:
    return _text.NONE if value is None else _text.significant(value)
