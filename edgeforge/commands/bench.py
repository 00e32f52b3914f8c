"""`edgeforge bench`: the files of a finished run, measured again on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from edgeforge.commands.summary import read
from edgeforge.core.artifact import Artifact, digest_files, hash_folder
from edgeforge.core.errors import ConfigurationError, EnvironmentProblem
from edgeforge.core.report import ArtifactRow, LatencyComparison, MeasurementRow
from edgeforge.core.stage import Job, Progress
from edgeforge.pipeline import Pipeline, load
from edgeforge.renderers import _text as text
from edgeforge.stages.benchmark import Benchmark

DEVICE = "host_cpu"
FILE_NAME = "bench.json"


class _Spinner:
    """A stage's progress beside a spinner."""

    def __init__(self, name: str, status: Status) -> None:
        self.name, self.status = name, status

    def update(self, done: int, total: int, note: str = "") -> None:
        self.status.update(f"measuring {self.name}: {done}/{total} {note}")

    def warn(self, message: str) -> None:
        self.status.console.print(f"[yellow]warning[/yellow] {escape(message)}", highlight=False)


def folder_of(file_or_run: Path) -> Path:
    """The run's folder that is meant: itself, or the one that a pipeline file's run writes by default."""
    return file_or_run if file_or_run.is_dir() else Path("runs") / load(file_or_run).name


def measure(folder: Path, *, threads: int, console: Console) -> dict[str, Mapping[str, Any]]:
    """Artifact name -> facts of a benchmark beside the baseline, written to ``bench.json`` too.

    Raises ConfigurationError where the folder holds no finished run, EnvironmentProblem where measuring fails.
    """
    report = read(folder)
    pipeline = load(folder / "pipeline.yaml")
    artifacts = {row.name: _artifact(folder, row) for row in report.artifacts if row.status == "shipped"}
    if not artifacts:
        raise ConfigurationError("this run shipped no file", where=str(folder), remedy="see its report.html")
    stage = Benchmark(device=DEVICE, threads=threads)
    found = {}
    for name, artifact in artifacts.items():
        inputs = {"model": artifact}
        if name != "baseline" and "baseline" in artifacts:
            inputs["baseline"] = artifacts["baseline"]
        with TemporaryDirectory(prefix="edgeforge-") as draft, console.status(f"measuring {name}") as status:
            found[name] = stage.run(inputs, _job(pipeline, Path(draft), _Spinner(name, status)))
    try:
        (folder / FILE_NAME).write_text(json.dumps(found, indent=1), encoding="utf-8")
    except OSError as error:
        raise EnvironmentProblem(f"cannot be written: {error.strerror}", where=str(folder / FILE_NAME)) from error
    return found


def show(found: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """One line per file."""
    columns = ("file", "latency", "95 % interval", "load", "peak memory", "speed")
    table = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, facts in found.items():
        rows = {row.metric: row for row in map(MeasurementRow.model_validate, facts["measurements"])}
        if not rows:
            table.add_row(name, *[text.NONE] * 4)
            continue
        latency, peak = rows["latency_ms"], rows["peak_rss_mb"]
        compared = LatencyComparison.model_validate(facts["latency"]) if facts["latency"] else None
        table.add_row(
            name,
            text.milliseconds(latency.median),
            escape(text.interval(latency.ci95)),
            text.milliseconds(rows["load_ms"].median),
            f"{peak.median:.0f} MB" if peak.median is not None else text.NONE,
            text.speed(compared) if compared else "",
        )
    console.print(table)
    for name, facts in found.items():
        if facts.get("reason"):
            console.print(f"[yellow]{name}[/yellow]: {escape(facts['reason'])}", highlight=False)


def _artifact(folder: Path, row: ArtifactRow) -> Artifact:
    """The shipped files as the artifact they were copied from."""
    path = folder / "artifacts" / row.name
    files = hash_folder(path)
    if not files:
        raise ConfigurationError(f"the files of {row.name} are gone", where=str(path), remedy="run the pipeline again")
    return Artifact("", "export", row.format, path, digest_files(files), files, {}, {})


def _job(pipeline: Pipeline, folder: Path, progress: Progress) -> Job:
    def no_accelerator() -> NoReturn:
        raise AssertionError("measuring a file needs no accelerator")

    return Job(pipeline.task, folder, pipeline.seed, no_accelerator, progress)
