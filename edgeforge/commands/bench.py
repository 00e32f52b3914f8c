"""`edgeforge bench`: the files of a finished run, or a GGUF file, measured on this machine or on another device."""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from edgeforge import gguf_file, measurements
from edgeforge.commands import _gguf
from edgeforge.commands.summary import read
from edgeforge.core.artifact import Artifact, digest_files, hash_folder
from edgeforge.core.errors import ConfigurationError, EnvironmentProblem
from edgeforge.core.report import ArtifactRow, LatencyComparison, MeasurementRow, Report
from edgeforge.core.stage import Job, Progress
from edgeforge.core.task import Input, Interface, Task, Tokens
from edgeforge.device import profile
from edgeforge.pipeline import Pipeline, load
from edgeforge.renderers import _text as text
from edgeforge.renderers import write_all
from edgeforge.stages.benchmark import Benchmark

DEVICE = "host_cpu"
FILE_NAME = "bench.json"
COUNTED = "instructions"
_COMPARED = ("measurements", "baseline")


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


def stage_for(device: str, *, threads: int, sustained_s: float = 0, accuracy_samples: int = 0) -> Benchmark:
    """The stage that measures there. Raises ConfigurationError, IncompatiblePlanError where nothing reaches it."""
    profile(device, where="--device")
    stage = Benchmark(device=device, threads=threads, sustained_s=sustained_s, accuracy_samples=accuracy_samples)
    stage.check()
    return stage


def file_name(stage: Benchmark) -> str:
    """Where the results are written, in the run's folder: each device has its own."""
    return FILE_NAME if stage.device == DEVICE else f"bench.{stage.device}.json"


def measure(folder: Path, *, stage: Benchmark, console: Console) -> dict[str, Mapping[str, Any]]:
    """Artifact name -> facts of a benchmark beside the baseline, written to ``bench.json`` too.

    The run's report takes in what it lacks (`measurements.taken_in`) and is drawn again. A device that is lost halfway
    leaves what was measured until then. Raises ConfigurationError where the folder holds no finished run,
    EnvironmentProblem or DeviceProblem where nothing can be measured.
    """
    report = read(folder)
    pipeline = load(folder / "pipeline.yaml")
    artifacts = {row.name: _artifact(folder, row) for row in report.artifacts if row.status == "shipped"}
    if not artifacts:
        raise ConfigurationError("this run shipped no file", where=str(folder), remedy="see its report.html")
    found: dict[str, Mapping[str, Any]] = {}
    try:
        _measure_all(artifacts, stage, pipeline, console, found)
    finally:
        if found:
            _write(folder / file_name(stage), found)
            _into_report(report, found, stage, folder)
    return found


def _into_report(report: Report, found: Mapping[str, Mapping[str, Any]], stage: Benchmark, folder: Path) -> None:
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    source = {"file": file_name(stage), "created": created}
    try:
        write_all(measurements.taken_in(report, stage.device, found, source=source), folder)
    except OSError as error:
        raise EnvironmentProblem(f"the report cannot be written: {error.strerror}", where=str(folder)) from error


def measure_file(path: Path, *, stage: Benchmark, console: Console) -> dict[str, Mapping[str, Any]]:
    """The same for a GGUF file that belongs to no run, on random tokens, as llama-bench does; nothing is written.

    Raises ConfigurationError where there is no such file, ModelError where it is damaged.
    """
    with (
        _gguf.folder_of(path) as folder,
        TemporaryDirectory(prefix="edgeforge-") as draft,
        console.status(f"measuring {path.name}") as status,
    ):
        file = gguf_file.read(folder / gguf_file.MODEL)
        task = _RandomTexts(vocabulary_size=file.tensors["token_embd.weight"].shape[0], length=stage.prompt_tokens)
        progress = _Spinner(path.name, status)
        job = Job(task, Path(draft), 0, _no_accelerator, progress)
        facts = stage.run({"model": Artifact("", "export", "gguf", folder, "", {}, {}, {}, {})}, job)
    if "reason" in facts:
        raise EnvironmentProblem(str(facts["reason"]), where=str(path))
    return {path.name: facts}


class _RandomTexts(Task):
    """One text of random tokens, of which speed does not depend; its own data."""

    kind: str = "random_texts"
    vocabulary_size: int
    length: int

    @property
    def interface(self) -> Interface:
        tokens = Tokens(self.vocabulary_size, self.length, 0)
        return Interface((Input("input_ids", (self.length,), "int64", variable=True),), "logits", (), tokens=tokens)

    def open(self, model: Path | None = None) -> Any:
        return self

    def size(self, split: str) -> int:
        return 1

    def batch(self, split: str, indices: Any) -> dict[str, Any]:
        import torch

        ids = random.Random(0).choices(range(self.vocabulary_size), k=self.length)
        return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, self.length, dtype=torch.int64)}


def _measure_all(
    artifacts: Mapping[str, Artifact],
    stage: Benchmark,
    pipeline: Pipeline,
    console: Console,
    found: dict[str, Mapping[str, Any]],
) -> None:
    for name, artifact in artifacts.items():
        inputs = {"model": artifact}
        if name != "baseline" and "baseline" in artifacts:
            inputs["baseline"] = artifacts["baseline"]
        with TemporaryDirectory(prefix="edgeforge-") as draft, console.status(f"measuring {name}") as status:
            found[name] = stage.run(inputs, _job(pipeline, Path(draft), _Spinner(name, status)))


def _write(path: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    try:
        path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    except OSError as error:
        raise EnvironmentProblem(f"cannot be written: {error.strerror}", where=str(path)) from error


def show(found: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """One line per file."""
    if any("prompt_tokens" in facts.get("conditions", {}) for facts in found.values()):
        _show_texts(found, console)
    elif any(row["metric"] == COUNTED for facts in found.values() for row in facts["measurements"]):
        _show_counts(found, console)
    else:
        _show_calls(found, console)
    for name, facts in found.items():
        for said in _said(facts):
            console.print(f"[yellow]{name}[/yellow]: {escape(said)}", highlight=False)


def _show_texts(found: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """Of language models: speeds of reading and of writing."""
    columns = ("tokens/s", "read", "written", "95 % interval", "first", "load", "peak", "bandwidth", "speed")
    table = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, facts in found.items():
        rows = {row.metric: row for row in map(MeasurementRow.model_validate, facts["measurements"])}
        if not rows:
            table.add_row(name, *[text.NONE] * 8)
            continue
        decode, share = rows["decode_tokens_per_s"], rows.get("memory_bandwidth_percent")
        compared = LatencyComparison.model_validate(facts["latency"]) if facts["latency"] else None
        table.add_row(
            name,
            text.significant(rows["prefill_tokens_per_s"].median or 0),
            text.significant(decode.median or 0),
            escape(text.interval(decode.ci95)),
            text.milliseconds(rows["first_token_ms"].median),
            text.milliseconds(rows["load_ms"].median),
            f"{peak.median:.0f} MB" if (peak := rows.get("peak_rss_mb")) and peak.median is not None else text.NONE,
            f"{share.median:.0f} %" if share and share.median is not None else text.NONE,
            text.speed(compared) if compared else "",
        )
    console.print(table)


def _show_calls(found: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    columns = ("file", "latency", "95 % interval", "load", "peak memory", "speed")
    table = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, facts in found.items():
        rows = {row.metric: row for row in map(MeasurementRow.model_validate, facts["measurements"])}
        if not rows:
            table.add_row(name, *[text.NONE] * 4)
            continue
        latency, peak = rows["latency_ms"], rows.get("peak_rss_mb")
        compared = LatencyComparison.model_validate(facts["latency"]) if facts["latency"] else None
        table.add_row(
            name,
            text.milliseconds(latency.median),
            escape(text.interval(latency.ci95)),
            text.milliseconds(rows["load_ms"].median),
            f"{peak.median:.0f} MB" if peak and peak.median is not None else text.NONE,
            text.speed(compared) if compared else "",
        )
    console.print(table)


def _show_counts(found: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """Of an emulated processor: instructions of a call."""
    metrics = (COUNTED, *(f"{COUNTED}_{name}" for name in ("vector", "dot_product", "int8_matrix", "memory")))
    columns = ("emulated", "instructions", "vector", "dot product", "int8 matrix", "memory", "than baseline")
    table = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, facts in found.items():
        counts, before = ({row["metric"]: row["median"] for row in facts.get(role, ())} for role in _COMPARED)
        ratio = before[COUNTED] / counts[COUNTED] if before and counts else None
        against = "" if ratio is None else f"{text.times(max(ratio, 1 / ratio))} {'fewer' if ratio >= 1 else 'more'}"
        table.add_row(name, *(text.amount(counts.get(metric)) for metric in metrics), against)
    console.print(table)


def _said(facts: Mapping[str, Any]) -> Iterator[str]:
    """What does not fit into the table, as sentences."""
    conditions = facts.get("conditions", {})
    yield from (said for said in (facts.get("reason"), conditions.get("partial"), conditions.get("busy")) if said)
    if sustained := facts.get("sustained"):
        first, last = (text.milliseconds(sustained[f"{which}_quarter_ms"]) for which in ("first", "last"))
        yield (
            f"{sustained['seconds']:.0f} s without a pause: {first} in the first quarter, {last} in the last: "
            + (sustained["verdict"])
        )
    if answered := facts.get("on_device"):
        yield _answered(answered)


def _answered(facts: Mapping[str, Any]) -> str:
    if facts["metrics"] is None:
        return f"its own answers are not known: {facts['reason']}"
    metric, value = next(iter(facts["metrics"].items()))
    said = f"its own answers to {facts['samples']} test samples: {metric} {text.metric(value)}"
    same = facts.get("agreement_with_host")
    return said if same is None else f"{said}; {100 * same:.1f} % agree with this machine's"


def _artifact(folder: Path, row: ArtifactRow) -> Artifact:
    """The shipped files as the artifact they were copied from."""
    path = folder / "artifacts" / row.name
    files = hash_folder(path)
    if not files:
        raise ConfigurationError(f"the files of {row.name} are gone", where=str(path), remedy="run the pipeline again")
    return Artifact("", "export", row.format, path, digest_files(files), files, {}, {})


def _job(pipeline: Pipeline, folder: Path, progress: Progress) -> Job:
    return Job(pipeline.task, folder, pipeline.seed, _no_accelerator, progress)


def _no_accelerator() -> NoReturn:
    raise AssertionError("measuring a file needs no accelerator")
