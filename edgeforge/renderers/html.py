"""report.html: one file that opens offline and asks no server for anything; charts are SVG inside it, no scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgeforge.core.report import FALLING, ArtifactRow, MeasurementRow, Report
from edgeforge.renderers import Renderer, _devices, _lessons, _prompt_groups, _teacher, _text, _trades

if TYPE_CHECKING:
    from markupsafe import Markup

MOST_CLASSES = 40


class Html(Renderer):
    """For a browser, light or dark, wide or narrow, and for print. Every string is escaped."""

    kind: Literal["html"] = "html"
    file_name: ClassVar[str] = "report.html"

    def render(self, report: Report) -> str:
        from jinja2 import Environment, PackageLoader, StrictUndefined

        page = Environment(
            loader=PackageLoader("edgeforge.renderers", "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        page.filters |= {
            name: getattr(_text, name)
            for name in ("size", "amount", "milliseconds", "times", "metric", "points", "change", "interval")
        }
        page.filters |= {
            name: getattr(_text, name)
            for name in (
                "change_interval",
                "duration",
                "quantity",
                "words",
                "speed",
                "speed_interval",
                "format_of",
                "metric_notes",
                "latency",
                "beside_baseline",
                "decibels",
                "slower_than_parents",
                "point_interval",
                "share_interval",
                "correlation",
            )
        }
        page.filters |= {"significant": _significant, "conditions": _text.conditions, "facts": flat}
        page.filters["capitalize_first"] = _capitalized
        text: str = page.get_template("report.html.j2").render(
            report=report,
            tally=tally(report),
            charts=_charts_of(report),
            metric=next((name for row in report.artifacts if (name := _text.headline(row))), None),
            metric_names=_text.metric_names(report.artifacts),
            chain_metric=next((name for row in report.stages for name in row.facts.metrics), None),
            classes=class_changes(report),
            budget_numbers=_text.budget_numbers,
            colours=_colours(report),
            falling=FALLING,
            sparks=_sparks(report),
            teacher=_beside_teacher(report),
            devices=_on_devices(report),
            trades=list(_trades.trades(report)),
            prompts=_prompt_groups.prompt_groups(report),
            lessons=_lessons.lessons(report),
            held=_lessons.held(report),
        )
        return text


def _significant(value: float | None) -> str:
    return _text.NONE if value is None else _text.significant(value)


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def tally(report: Report) -> dict[str, int]:
    """How many targets ended how, how many budgets were kept, how many numbers are no measurements."""
    targets = list(report.targets())
    counts = {status: sum(row.status == status for row in targets) for status in ("shipped", "quarantined", "absent")}
    kept = [row.kept for row in report.budgets]
    unmeasured = sum(item.origin != "measured" for row in report.artifacts for item in row.measurements)
    budgets = {"budgets": len(kept), "kept": kept.count(True), "not_judged": kept.count(None)}
    return {**counts, **budgets, "targets": len(targets), "unmeasured": unmeasured}


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain data as (dotted name, text) lines; many names with few texts (layers) are grouped by text."""
    if isinstance(value, dict) and len(value) > 1 and all(isinstance(item, str) for item in value.values()) and prefix:
        groups: dict[str, list[str]] = {}
        for name, text in value.items():
            groups.setdefault(text, []).append(name)
        return [(_text.words(prefix), f"{text}: {', '.join(names)}") for text, names in groups.items()]
    if isinstance(value, dict):
        return [line for key, item in value.items() for line in flat(item, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, list | tuple) and any(isinstance(item, dict | list | tuple) for item in value):
        return [line for number, item in enumerate(value, 1) for line in flat(item, f"{prefix} {number}".strip())]
    text = ", ".join(map(_plain, value)) if isinstance(value, list | tuple) else _plain(value)
    return [(_text.words(prefix), text)] if text else []


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _text.significant(value, 4)
    return "" if value is None else str(value)


# -- charts


def _series(report: Report) -> dict[str, int]:
    """Row name -> number of its colour; the baseline is 0."""
    numbers = {row.name: number for number, row in enumerate(report.targets(), 1)}
    return {row.name: numbers.get(row.name, 0) for row in report.artifacts}


def _colours(report: Report) -> dict[str, str]:
    from edgeforge.renderers._charts import colour

    return {name: colour(number) for name, number in _series(report).items()}


def _charts_of(report: Report) -> dict[str, Markup]:
    """The charts there are numbers for, by name."""
    from edgeforge.renderers import _charts

    found = {}
    name = next((name for row in report.artifacts if (name := _text.headline(row))), None)
    metric = _text.words(name or "metric")
    by_size = [point for row in report.artifacts if (point := _point(report, row, None))]
    if len(by_size) > 1:
        title = f"{metric} against size"
        found["size"] = _charts.scatter(by_size, metric=name, title=title, x_axis=("file size", _text.tick_size))
    device = _devices.compared_on(report)
    by_latency = [
        point
        for row in report.artifacts
        if (m := row.measurement("latency_ms", device)) and (point := _point(report, row, m))
    ]
    if len(by_latency) > 1:
        per = "token" if any(row.measurement("decode_tokens_per_s") for row in report.artifacts) else "call"
        axis = (f"latency on {device}, ms per {per}", "{:g}".format)
        found["latency"] = _charts.scatter(by_latency, metric=name, title=f"{metric} against latency", x_axis=axis)
    rows = [
        _charts.Strip(row.name, _series(report)[row.name], item.samples, item.median, (low, high))
        for row in report.artifacts
        if (item := row.measurement("latency_ms", device)) and item.samples and item.median is not None
        for low, high in [item.ci95]
        if low is not None and high is not None
    ]
    if rows:
        found["samples"] = _charts.strips(rows, title="latency samples")
    if any(row.facts.params for row in report.stages):
        found["chain"] = _charts.chain(report.stages, title="the chain, stage by stage")
    return found


def _point(report: Report, row: ArtifactRow, latency: MeasurementRow | None) -> Any:
    """A row's place in a scatter chart (by size where `latency` is None); None where a number is missing."""
    from edgeforge.renderers._charts import Point

    name = _text.headline(row)
    y = row.metrics[name] if name else None
    x = latency.median if latency else float(row.bytes) if row.bytes else None
    if x is None or y is None:
        return None
    bounds = row.comparison.ci95 if row.comparison else None
    x_range = latency.ci95 if latency and None not in latency.ci95 else None
    what = _text.milliseconds(x) if latency else _text.size(row.bytes)
    origin = latency.origin if latency else "measured"
    start = y - row.comparison.difference if row.comparison and row.comparison.difference is not None else y
    return Point(
        name=row.name,
        x=x,
        y=y,
        series=_series(report)[row.name],
        status=row.status,
        origin=origin,
        x_range=x_range,  # type: ignore[arg-type]
        y_range=(start + bounds[0], start + bounds[1]) if bounds else None,
        note=f"{what}, {_text.metric(y, name)} ({origin}, {row.status})",
    )


def _beside_teacher(report: Report) -> dict[str, Any]:
    """What the sections about a teacher are drawn from; see `_teacher`."""
    lines = _teacher.pair_lines(report)
    columns = _teacher.columns(report)
    chart = None
    if lines:
        from edgeforge.renderers._pairs_chart import Student, pairs

        students = [Student(row.name, _series(report)[row.name]) for row, _ in columns]
        chart = pairs(lines, students, title="classes that look alike")
    return {
        "rows": _teacher.rows(report),
        "itself": next((one for _, one in _teacher.compared(report) if one.accuracy), None),
        "columns": columns,
        "classes": _teacher.class_table(report),
        "slices": _teacher.slice_tables(report),
        "pairs": chart,
        "temperature": next((one.dark_knowledge.temperature for _, one in columns if one.dark_knowledge), None),
        "probed": [(row, one.probe) for row, one in _teacher.compared(report) if one.probe],
        "costs": [(row, cost, _teacher.cost_cells(cost)) for row, cost in _teacher.costs(report)],
        "money": _teacher.has_money(report),
        "assumptions": _teacher.assumptions(report),
        "sources": [_teacher.source_cells(one) for one in report.lineage.sources] if report.lineage else [],
    }


def _on_devices(report: Report) -> dict[str, Any]:
    """What the section on devices is drawn from; see `_devices`."""
    from edgeforge.renderers import _device_chart
    from edgeforge.renderers._charts import spark

    series = _series(report)
    found = _devices.devices(report)
    curves = {
        device.name: [
            (row, _devices.sustained_cells(one), spark([ms for _, ms in one.series], of="ms"))
            for row, one in device.sustained
        ]
        for device in found
    }
    return {
        "all": found,
        "curves": curves,
        "answers": {
            device.name: [(row, _devices.answered_cells(one)) for row, one in device.answered] for device in found
        },
        "latency": _device_chart.latencies(report, series),
        "instructions": _device_chart.instructions(report, series),
        "explained": _devices.EXPLAINED,
        "estimated": any("estimated" in device.origins for device in found),
        "answered_head": _devices.ANSWERED,
        "sustained_head": _devices.SUSTAINED,
    }


def _sparks(report: Report) -> dict[str, Markup]:
    """Stage name -> its training loss, epoch by epoch."""
    from edgeforge.renderers._charts import spark

    found = {}
    for row in report.stages:
        history = (row.facts.model_extra or {}).get("history")
        loss = history.get("loss") if isinstance(history, dict) else None
        known = [value for value in loss or () if isinstance(value, int | float)]
        found[row.name] = spark(known)
    return found


def class_changes(report: Report) -> dict[str, Any]:
    """Accuracy per class: the baseline's, and each shipped target's change in points, worst class first.

    ``rows`` are (label, baseline, [(change, bar width in percent of the cell's half) or None]); ``left_out`` counts
    the classes beyond MOST_CLASSES.
    """
    baseline = report.artifact("baseline")
    known = [row for row in report.targets() if row.per_class_accuracy]
    columns = [row for row in known if row.status == "shipped"] or known
    if baseline is None or not columns or not baseline.per_class_accuracy:
        return {"columns": [], "rows": [], "left_out": 0}
    changes = {
        label: [_change(row.per_class_accuracy.get(label), before) for row in columns]
        for label, before in baseline.per_class_accuracy.items()
    }
    largest = max((abs(change) for line in changes.values() for change in line if change is not None), default=0) or 1
    worst = sorted(changes, key=lambda label: min((item for item in changes[label] if item is not None), default=0))
    rows = [
        (label, baseline.per_class_accuracy[label], [_bar(change, largest) for change in changes[label]])
        for label in worst[:MOST_CLASSES]
    ]
    return {"columns": columns, "rows": rows, "left_out": max(0, len(worst) - MOST_CLASSES)}


def _change(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _bar(change: float | None, largest: float) -> Sequence[float] | None:
    return None if change is None else (change, round(100 * abs(change) / largest, 1))
