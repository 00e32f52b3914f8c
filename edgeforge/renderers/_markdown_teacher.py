"""The sections of report.md that a teacher makes."""

from __future__ import annotations

from collections.abc import Iterator

from edgeforge.core.report import Report
from edgeforge.core.report_teacher import GroupChange, TeacherComparison
from edgeforge.renderers import _lessons, _teacher, _text
from edgeforge.renderers._table import escape, table


def sections(report: Report) -> Iterator[list[str]]:
    """Each a list of lines; empty ones are left out by the caller."""
    yield from map(_lesson, _lessons.lessons(report))
    yield _held(report)
    yield _lost(report)
    yield _per_class(report)
    yield _per_slice(report)
    yield _pairs(report)
    yield _probe(report)
    yield _costs(report)
    yield _lineage(report)


def _lesson(found: _lessons.Lessons) -> list[str]:
    head = ["filter", "came in", "kept", "left out"]
    body = [[escape(one.filter), str(one.into), str(one.out), escape(one.reasons)] for one in found.sieved]
    return [
        f"## What a teacher wrote: {escape(found.stage)}",
        "",
        f"{escape(found.said)}.",
        "",
        *table(head, body, right=(1, 2)),
    ]


def _held(report: Report) -> list[str]:
    found = _lessons.held(report)
    if found is None:
        return []
    body = [[escape(name), *map(_text.metric, shares)] for name, shares in found.lines]
    note = (
        "The share of what each wrote that holds to the spec: a teacher's examples, a model's answers to the test part."
    )
    head = ["part of the spec", *map(escape, found.writers)]
    return ["## Held to the spec", "", note, "", *table(head, body, right=range(1, len(head)))]


def _lost(report: Report) -> list[str]:
    found = _teacher.rows(report)
    if not found:
        return []
    missing = [f"- **{escape(row.name)}** was not compared: {escape(one.reason)}" for row, one in found if one.reason]
    if report.teacher is None:
        return ["## What the student lost", "", *missing]
    itself = next((one for _, one in found if one.accuracy), None)
    body = [[f"{escape(report.teacher or '')}, the teacher", *_teachers_numbers(itself)]] if itself else []
    body += [[escape(row.name), *_numbers(one)] for row, one in found if one.reason is None]
    head = ["file", "agrees"]
    note = (
        f"Against the torch model of {escape(report.teacher or '')}, which taught, on the test split. Brackets are "
        "95 % intervals."
    )
    if itself is not None:
        head += ["accuracy", "change", "calibration error", "confidence", "pairs"]
        note += (
            " Change: percentage points. Calibration error: expected, 15 bins. Confidence: mean of the highest "
            "probability. Pairs: rank correlation of how alike teacher and file find each pair of classes."
        )
    body = [line[: len(head)] for line in body]
    lines = table(head, body, right=range(1, len(head)))
    return [
        "## What the student lost",
        "",
        note,
        *([""] if lines else []),
        *lines,
        *([""] if missing else []),
        *missing,
    ]


def _numbers(one: TeacherComparison) -> list[str]:
    agreement = " ".join(filter(None, (_text.metric(one.agreement), _text.share_interval(one.agreement_ci95))))
    whole, calibration, pairs = one.accuracy, one.calibration, one.dark_knowledge
    return [
        agreement + (" of tokens" if one.unit == "token" else ""),
        _text.metric(whole.student if whole else None),
        _changed(whole),
        _text.metric(calibration.student_error if calibration else None),
        _text.metric(calibration.student_confidence if calibration else None),
        _text.correlation(pairs.rank_correlation if pairs else None),
    ]


def _teachers_numbers(one: TeacherComparison) -> list[str]:
    whole, calibration = one.accuracy, one.calibration
    return [
        _text.NONE,
        _text.metric(whole.teacher if whole else None),
        _text.NONE,
        _text.metric(calibration.teacher_error if calibration else None),
        _text.metric(calibration.teacher_confidence if calibration else None),
        _text.NONE,
    ]


def _changed(one: GroupChange | None) -> str:
    if one is None or one.change is None:
        return _text.NONE
    return " ".join(filter(None, (_text.points(one.change), _text.point_interval(one.ci95))))


def _lines(found: _teacher.Table) -> Iterator[list[str]]:
    for line in found.lines:
        yield [escape(line.name), str(line.n), _text.metric(line.teacher), *map(_changed, line.changes)]


def _names(report: Report) -> list[str]:
    return [escape(row.name) for row, _ in _teacher.columns(report)]


def _per_class(report: Report) -> list[str]:
    found = _teacher.class_table(report)
    if found is None:
        return []
    head = ["class", "samples", "teacher", *_names(report)]
    left = [f"{found.left_out} classes that lost less are in report.json."] if found.left_out else []
    return [
        "## Change per class, against the teacher",
        "",
        *table(head, _lines(found), right=range(1, len(head))),
        *([""] if left else []),
        *left,
    ]


def _per_slice(report: Report) -> list[str]:
    lines: list[str] = []
    for found in _teacher.slice_tables(report):
        head = [escape(found.title), "samples", "teacher", *_names(report)]
        lines += ["", *table(head, _lines(found), right=range(1, len(head)))]
    return ["## Change per slice, against the teacher", *lines] if lines else []


def _pairs(report: Report) -> list[str]:
    known = [found.dark_knowledge for _, found in _teacher.columns(report) if found.dark_knowledge]
    body = [
        [
            escape(line.name),
            _text.metric(line.teacher),
            *(_text.NONE if one is None else f"{_text.metric(one[0])} (rank {one[1]})" for one in line.students),
        ]
        for line in _teacher.pair_lines(report)
    ]
    if not body or not known:
        return []
    head = ["pair", "teacher", *_names(report)]
    note = (
        f"The mean probability, at temperature {known[0].temperature:g}, that is given to one class of a pair for "
        "samples of the other. The pairs that the teacher finds most alike come first, then others that a file does."
    )
    return ["## Classes that look alike", "", note, "", *table(head, body, right=range(1, len(head)))]


def _probe(report: Report) -> list[str]:
    body = []
    for row, found in _teacher.compared(report):
        if found.probe is not None:
            one = found.probe
            body.append(
                [
                    escape(row.name),
                    str(one.n),
                    _text.metric(one.teacher_confidence),
                    _text.metric(one.student_confidence),
                    " ".join(filter(None, (_text.metric(one.agreement), _text.share_interval(one.ci95)))),
                    escape(one.reason or ""),
                ]
            )
    head = ["file", "samples", "confidence, teacher", "file", "agrees", ""]
    note = "Samples that do not belong to the task. Confidence: mean of the highest probability."
    return ["## The probe", "", note, "", *table(head, body, right=(1, 2, 3, 4))] if body else []


def _costs(report: Report) -> list[str]:
    found, money = _teacher.costs(report), _teacher.has_money(report)
    if not found:
        return []
    body = []
    for row, cost in found:
        cells = _teacher.cost_cells(cost)
        line = [escape(row.name), escape(cost.device or _text.NONE), cells["own"], cells["teacher"], cells["making"]]
        line.append(escape(cells["time"]))
        body.append(line + ([cells["teacher_money"], cells["making_money"], cells["money"]] if money else []))
    head = ["file", "device", "1,000 answers", "by the teacher", "making", "time won back after"]
    head += ["teacher's price", "paid", "money won back after"] if money else []
    lines = table(head, body, right=(2, 3, 4, 6, 7))
    return ["## What answers cost", "", *lines, "", *(f"- {escape(line)}" for line in _teacher.assumptions(report))]


def _lineage(report: Report) -> list[str]:
    if report.lineage is None:
        return []
    sources = [list(map(escape, _teacher.source_cells(one))) for one in report.lineage.sources]
    steps = [
        [
            escape(step.name),
            step.kind,
            _text.NONE if step.training_steps is None else f"{step.training_steps:,}",
            f"{step.digest[: _teacher.DIGEST]}…" if step.digest else _text.NONE,
        ]
        for step in report.lineage.steps
    ]
    return [
        "## Where it comes from",
        "",
        *table(["what", "step", "from", "licence", "sha256"], sources),
        "",
        *table(["step", "kind", "training steps", "sha256"], steps, right=(2,)),
    ]
