"""report.md: the report as tables, readable in a terminal and on a forge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from edgeforge.core.report import ArtifactRow, Report
from edgeforge.renderers import Renderer, _devices, _markdown_devices, _markdown_teacher, _prompt_groups, _text, _trades
from edgeforge.renderers._table import escape as escape
from edgeforge.renderers._table import table as table

WORST_LAYERS = 5

_STATUS = {"shipped": "✓ shipped", "quarantined": "✗ quarantined", "absent": "- absent"}
_PASSED = {True: "✓", False: "✗", None: "not evaluable here"}


class Markdown(Renderer):
    """GitHub-flavoured Markdown; every table is aligned in the source too."""

    kind: Literal["markdown"] = "markdown"
    file_name: ClassVar[str] = "report.md"

    def render(self, report: Report) -> str:
        machine = report.environment
        sections = [
            [f"# {escape(report.pipeline)}"],
            [
                f"Run `{report.run}`, {report.created}, EdgeForge {report.edgeforge}, seed {report.seed}. "
                f"{escape(machine.cpu)}, {machine.cores} cores, {machine.ram_gb:g} GB, {escape(machine.os)}, "
                f"Python {machine.python}."
            ],
            _files(report),
            _markdown_devices.section(report),
            _chain(report),
            *map(_trade, _trades.trades(report)),
            _budgets(report),
            _metrics(report),
            _per_class(report),
            _prompts(report),
            *_markdown_teacher.sections(report),
            _verification(report),
            _layers(report),
            _measurements(report),
            _conditions(report),
            _bullets("Warnings", report.warnings),
        ]
        return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def _files(report: Report) -> list[str]:
    rows, on = [], " on {}" if len(_devices.names(report)) > 1 else ""
    for row in report.artifacts:
        name = _text.headline(row)
        latency, beside = row.measurement("latency_ms"), _text.beside_baseline(row)
        rows.append(
            [
                escape(row.name),
                _STATUS[row.status],
                escape(_text.format_of(row)),
                _text.size(row.bytes),
                _text.times(row.deltas.get("size_ratio")),
                _text.metric(row.metrics[name], name) if name else _text.NONE,
                _change(row, name),
                f"{_text.latency(row)} ({latency.origin}{on.format(latency.device)})" if latency else _text.NONE,
                " ".join(filter(None, (_text.speed(beside), _text.speed_interval(beside)))),
            ]
        )
    reasons = [
        f"- **{escape(row.name)}** is {row.status}: {escape(row.reason)}" for row in report.artifacts if row.reason
    ]
    reasons += [
        f"- **{escape(row.name)}**: {escape(line)}"
        for row in report.artifacts
        for line in _text.slower_than_parents(row)
    ]
    missing = [
        f"- **{escape(row.name)}** was not evaluated: {escape(row.metrics_reason)}"
        for row in report.artifacts
        if row.metrics_reason
    ]
    metric = next((_text.words(name) for row in report.artifacts if (name := _text.headline(row))), "metric")
    head = ["file", "status", "format", "size", "smaller", metric, "change", "latency", "against the baseline"]
    notes = [
        "Change: difference from the baseline's written file, of shares in percentage points, with the paired 95 % "
        "interval. "
        "Latency: median of one call, batch 1 (of a language model: of one token that it writes); faster or slower is "
        "said only where the 95 % interval excludes 1."
    ]
    bullets = reasons + missing
    return ["## Files", "", *table(head, rows, right=(3, 4, 5, 6)), "", *notes, *([""] if bullets else []), *bullets]


def _change(row: ArtifactRow, metric: str | None) -> str:
    change = row.deltas.get(metric) if metric else None
    bounds = row.comparison.ci95 if row.comparison else None
    return " ".join(filter(None, (_text.change(change, metric), _text.change_interval(bounds, metric))))


def _chain(report: Report) -> list[str]:
    rows = []
    for row in report.stages:
        metric = next(iter(row.facts.metrics), None)
        rows.append(
            [
                escape(row.name),
                row.kind,
                _text.amount(row.facts.params),
                _text.amount(row.facts.macs),
                _text.metric(row.facts.metrics[metric], metric) if metric else _text.NONE,
                _text.duration(row.seconds) + (" (cached)" if row.cached else ""),
            ]
        )
    metric = next((_text.words(name) for row in report.stages for name in row.facts.metrics), "metric")
    head = ["stage", "kind", "parameters", "MACs", metric, "time"]
    return ["## The chain, stage by stage", "", *table(head, rows, right=(2, 3, 4, 5))] if rows else []


def _trade(found: _trades.Trade) -> list[str]:
    rows = [
        [escape(cells[0]), *cells[1:], "used" if number == found.used else ""]
        for number, cells in enumerate(found.lines)
    ]
    head = [*map(escape, found.head), ""]
    right = range(1, len(found.head))
    return [f"## {escape(found.title)}", "", found.note, "", *table(head, rows, right=right)]


def _budgets(report: Report) -> list[str]:
    rows = []
    for row in report.budgets:
        value, limit = _text.budget_numbers(row)
        note = escape(row.reason) if row.reason else ""
        where = f" on {row.device}" if row.device else ""
        verdict = (_text.NONE if row.kept is None else _PASSED[row.kept]) + (f" {note}" if note else "")
        rows.append([escape(row.target), _text.words(row.metric) + where, limit, value, verdict])
    head = ["file", "budget", "limit", "value", "kept"]
    return ["## Budgets", "", *table(head, rows, right=(2, 3))] if rows else []


def _metrics(report: Report) -> list[str]:
    """Every metric of every file, and what ran it."""
    rows = [row for row in report.artifacts if row.metrics]
    names = _text.metric_names(rows)
    body = [
        [
            escape(row.name),
            escape(_text.format_of(row)),
            escape(row.metrics_runtime or _text.NONE),
            *(_text.metric(row.metrics.get(name), name) for name in names),
        ]
        for row in rows
    ]
    head = ["file", "format", "ran on", *(escape(_text.words(name)) for name in names)]
    notes = [line for note in _text.metric_notes(rows) for line in ("", escape(note))]
    return (
        ["## Metrics of the written files", "", *table(head, body, right=range(3, len(head))), *notes] if rows else []
    )


def _per_class(report: Report) -> list[str]:
    rows = [row for row in report.artifacts if row.per_class_accuracy]
    if not rows:
        return []
    body = [
        [escape(label), *(_text.metric(row.per_class_accuracy.get(label)) for row in rows)]
        for label in rows[0].per_class_accuracy
    ]
    head = ["class", *(escape(row.name) for row in rows)]
    return ["## Accuracy per class", "", *table(head, body, right=range(1, len(head)))]


def _prompts(report: Report) -> list[str]:
    found = _prompt_groups.prompt_groups(report)
    if found is None:
        return []
    body = [list(map(escape, cells)) for cells in found.lines]
    head = list(map(escape, found.head))
    return ["## Prompts, group by group", "", *table(head, body, right=range(2, len(head)))]


def _verification(report: Report) -> list[str]:
    rows = [
        [
            escape(row.name),
            _PASSED[row.parity.passed],
            escape(row.parity.reference or _text.NONE),
            _text.NONE if row.parity.max_abs_error is None else _text.significant(row.parity.max_abs_error),
            _text.NONE if row.parity.tolerance is None else _text.significant(row.parity.tolerance),
            _text.metric(row.fidelity.agreement if row.fidelity else None),
            _text.metric(row.comparison.agreement if row.comparison else None),
            f"`{row.sha256[:16]}…`" if row.sha256 else _text.NONE,
        ]
        for row in report.artifacts
        if row.status != "absent"
    ]
    head = [
        "file",
        "parity",
        "with",
        "largest error",
        "tolerance",
        "agrees with float model",
        "with baseline",
        "sha256",
    ]
    return ["## Verification", "", *table(head, rows, right=(3, 4, 5, 6))] if rows else []


def _layers(report: Report) -> list[str]:
    rows = [
        [escape(row.name), escape(layer.name), _text.decibels(layer.weight_db), _text.decibels(layer.output_db)]
        for row in report.artifacts
        for layer in row.layers[:WORST_LAYERS]
    ]
    head = ["file", "layer", "weight", "output"]
    note = "Signal over quantization noise in dB: 6 dB less is twice the error. All layers are in report.json."
    return ["## Layers that lost most", "", *table(head, rows, right=(2, 3)), "", note] if rows else []


def _measurements(report: Report) -> list[str]:
    rows = [
        [
            escape(row.name),
            escape(item.device),
            item.runtime,
            _text.quantity(item.metric),
            _text.NONE if item.median is None else _text.significant(item.median),
            _text.interval(item.ci95) or _text.NONE,
            _text.NONE if item.p90 is None else _text.significant(item.p90),
            str(item.n),
            item.origin,
        ]
        for row in report.artifacts
        for item in row.measurements
    ]
    head = ["file", "device", "runtime", "metric", "median", "95 % interval", "p90", "n", "origin"]
    return ["## Measurements", "", *table(head, rows, right=(4, 5, 6, 7))] if rows else []


def _conditions(report: Report) -> list[str]:
    lines = []
    for row in report.artifacts:
        for item in row.conditions:
            said = f"not measured: {item.reason}" if item.reason else "; ".join(_text.conditions(item))
            lines.append(f"{row.name} on {item.device}: {said}")
    return _bullets("How it was measured", lines)


def _bullets(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {escape(line)}" for line in lines)] if lines else []
