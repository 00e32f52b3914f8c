"""What a report says in a few lines; `edgeforge report` draws a run's files again."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgeforge.core.errors import ConfigurationError, EnvironmentProblem
from edgeforge.core.report import ArtifactRow, Report
from edgeforge.renderers import _text as text
from edgeforge.renderers import write_all

_COLOURS = {"shipped": "green", "quarantined": "red", "absent": "yellow"}


def read(folder: Path) -> Report:
    """The report of a run's folder. Raises ConfigurationError where there is none, or not one."""
    path = folder / "report.json"
    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(
            f"no report to read: {error.strerror}",
            where=str(path),
            remedy="name the folder of a run, such as runs/NAME",
        ) from error
    except ValidationError as error:
        raise ConfigurationError(
            f"not a report of EdgeForge: {error.errors()[0]['msg']}", where=str(path), remedy="run the pipeline again"
        ) from error


def redraw(folder: Path) -> Report:
    """Write the report's files again from report.json. Raises ConfigurationError, EnvironmentProblem."""
    report = read(folder)
    try:
        write_all(report, folder)
    except OSError as error:
        raise EnvironmentProblem(f"the report cannot be written: {error.strerror}", where=str(folder)) from error
    return report


def show(report: Report, folder: Path, console: Console) -> None:
    """One line per file, the missed budgets, and where to read more."""
    baseline = report.artifact("baseline")
    metric = text.headline(baseline) if baseline else None
    table = Table("file", "state", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("size", "smaller", text.words(metric or ""), "change", "latency", "speed"):
        table.add_column(title, justify="right")
    for row in report.artifacts:
        table.add_row(*map(_cell, _cells(row, metric)))
    console.print()
    console.print(table)
    for row in report.artifacts:
        if (bits := row.quantization.get("bits_per_weight")) is not None:
            console.print(f"{row.name}: {bits:.2f} bits per weight", markup=False, highlight=False)
        reason = row.reason or row.metrics_reason
        if reason:
            console.print(f"[yellow]{row.name}[/yellow]: {escape(reason)}", highlight=False)
    for budget in report.budgets:
        if not budget.passed:
            value, limit = text.budget_numbers(budget)
            console.print(
                f"[red]budget missed[/red] {budget.target}: {budget.metric} {value}, limit {limit}", highlight=False
            )
    console.print(f"\nreport: {folder / 'report.html'}", markup=False, highlight=False, soft_wrap=True)


def _cell(value: str) -> str:
    return value if value.startswith("[") else escape(value)


def _cells(row: ArtifactRow, metric: str | None) -> list[str]:
    latency = row.measurement("latency_ms")
    compared = row.latency[0] if row.latency else None
    return [
        row.name,
        f"[{_COLOURS[row.status]}]{row.status}[/]",
        text.size(row.bytes),
        text.times(row.deltas.get("size_ratio")) if row.name != "baseline" else "",
        text.metric(row.metrics.get(metric), metric) if metric else text.NONE,
        text.change(row.deltas.get(metric), metric) if metric and row.name != "baseline" else "",
        text.milliseconds(latency.median if latency else None),
        text.speed(compared) if row.name != "baseline" else "",
    ]
