"""`edgeforge sweep`: a pipeline with some of its values varied; every combination is a run, and all share one store."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from edgeforge.core.document import Document
from edgeforge.core.errors import ConfigurationError, EdgeForgeError
from edgeforge.core.report import FALLING, Report
from edgeforge.pipeline import load
from edgeforge.plan import Plan, build
from edgeforge.renderers import _text as text
from edgeforge.run import Watcher, execute
from edgeforge.store import Store

FILE_NAME = "sweep.json"
SCHEMA = "edgeforge.sweep/1"
MOST_RUNS = 256
"""More combinations than this are a mistake in the values rather than a wish."""


@dataclass(frozen=True)
class Varied:
    """A value of the pipeline file, by its dotted path, and what it takes in turn.

    Several paths, joined by `+`, change together, as the weights of two losses do: each value is a list, one for each.
    """

    path: str
    values: tuple[Any, ...]

    def settings(self) -> list[dict[str, Any]]:
        """What is set, in turn: path -> value."""
        paths = self.path.split("+")
        together = self.values if len(paths) > 1 else [[value] for value in self.values]
        return [dict(zip(paths, values, strict=True)) for values in together]


@dataclass(frozen=True)
class Found:
    """What became of one combination. `validation`: the task's headline metric, of the last model trained."""

    settings: dict[str, Any]
    folder: Path
    metric: str | None = None
    validation: float | None = None
    report: Report | None = None
    error: str | None = None

    @property
    def score(self) -> float:
        """Higher is better; what has no validation metric comes last."""
        if self.validation is None or self.metric is None:
            return -math.inf
        return -self.validation if self.metric in FALLING else self.validation


def varied(said: str) -> Varied:
    """``a.b.0.c=1,2,4``, ``a.b+a.c=[1, 2],[3, 4]``: values are YAML, between commas. Raises ConfigurationError."""
    path, equals, values = said.partition("=")
    try:
        found = Document(f"[{values}]".encode(), "--vary").data
    except ConfigurationError:
        found = None
    if not (equals and path and found):
        raise ConfigurationError(
            f"'{said}' is not of the form a.b=1,2,4",
            where="--vary",
            remedy="for example --vary stages.1.losses.0.temperature=1,2,4",
        )
    many = path.count("+") + 1
    if many > 1 and not all(isinstance(value, list) and len(value) == many for value in found):
        raise ConfigurationError(
            f"'{path}' are {many} values that change together, and each of theirs is a list of {many}",
            where="--vary",
            remedy=f"for example --vary {path}={json.dumps(list(range(1, many + 1)))}",
        )
    return Varied(path, tuple(found))


def plans(file: Path, overrides: Sequence[str], choices: Sequence[Varied]) -> list[tuple[dict[str, Any], Plan]]:
    """(what is set, its plan) of every combination, so that none fails for its YAML after hours of others.

    Raises ConfigurationError, IncompatiblePlanError.
    """
    count = math.prod(len(choice.values) for choice in choices)
    if count > MOST_RUNS:
        raise ConfigurationError(
            f"these values make {count:,} combinations, and {MOST_RUNS} are the most",
            where="--vary",
            remedy="vary fewer values, or in turn",
        )
    found = []
    for chosen in itertools.product(*(choice.settings() for choice in choices)):
        settings = {path: value for part in chosen for path, value in part.items()}
        said = [f"{path}={json.dumps(value)}" for path, value in settings.items()]
        found.append((settings, build(load(file, [*overrides, *said]))))
    return found


def run(
    planned: Sequence[tuple[dict[str, Any], Plan]], store: Store, out: Path, *, watcher: Watcher, console: Console
) -> list[Found]:
    """Run every combination into ``out/<number>``; what fails is recorded, and the others go on."""
    results = []
    for number, (settings, plan) in enumerate(planned, 1):
        console.rule(f"{number}/{len(planned)}  {_said(settings)}", align="left")
        folder = out / str(number)
        try:
            outcome = execute(plan, store, folder, watcher=watcher)
        except EdgeForgeError as error:
            watcher.warn(f"{error.what}; the other combinations go on")
            results.append(Found(settings, folder, error=str(error)))
            continue
        metric, validation = _validation(plan, outcome.report)
        said = str(outcome.error) if outcome.error is not None else None
        results.append(Found(settings, folder, metric, validation, outcome.report, said))
        _write(results, out)
    _write(results, out)
    return results


def check(results: Sequence[Found]) -> None:
    """Raise ConfigurationError where a combination did not come to its end. Missed budgets are no failure here."""
    failed = [found for found in results if found.report is None]
    if failed:
        raise ConfigurationError(
            f"{len(failed)} of {len(results)} combinations failed; run {failed[0].folder.name}: {failed[0].error}",
            where="sweep",
            remedy="mend it and sweep again: what is finished is kept",
        )


def _validation(plan: Plan, report: Report) -> tuple[str | None, float | None]:
    """The headline metric on the validation split, of the last stage that chose by it."""
    for row in reversed(report.stages):
        history = (row.facts.model_extra or {}).get("history", {})
        if row.name in plan.chain and history.get("validation"):
            metric = next(iter(row.facts.metrics), None)
            return metric, (min if metric in FALLING else max)(history["validation"])
    return None, None


def best(results: Sequence[Found]) -> Found | None:
    """The one that the validation split prefers; None where no stage has looked at it."""
    chosen = max(results, key=lambda found: found.score, default=None)
    return None if chosen is None or chosen.validation is None else chosen


def _write(results: Sequence[Found], out: Path) -> None:
    chosen = best(results)
    document = {
        "schema": SCHEMA,
        "chosen_by": "the headline metric on the validation split",
        "best": None if chosen is None else chosen.folder.name,
        "runs": [
            {
                "run": found.folder.name,
                "settings": found.settings,
                "validation": {found.metric: found.validation} if found.metric else {},
                "test": {name: value for name, value, _ in _tested(found)},
                "bytes": {name: count for name, _, count in _tested(found)},
                "error": found.error,
            }
            for found in results
        ],
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / FILE_NAME
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def _tested(found: Found) -> Iterator[tuple[str, float | None, int | None]]:
    """(row, headline metric on the test split, bytes) of every target's file."""
    if found.report is None:
        return
    for row in found.report.targets():
        metric = text.headline(row)
        yield row.name, row.metrics.get(metric) if metric else None, row.bytes


def show(results: Sequence[Found], out: Path, console: Console) -> None:
    """A line for each combination. The best is by validation: choosing by the test split would flatter it."""
    paths = list(results[0].settings)
    targets = list(dict.fromkeys(name for found in results for name, _, _ in _tested(found)))
    metric = next((found.metric for found in results if found.metric), None)
    table = Table("run", *_short(paths), box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(f"validation {text.words(metric or '')}".strip(), justify="right")
    for name in targets:
        table.add_column(f"{name}, test", justify="right")
        table.add_column("size", justify="right")
    chosen = best(results)
    for found in results:
        tested = {name: (value, count) for name, value, count in _tested(found)}
        cells = [text.metric(found.validation, metric) if metric else text.NONE]
        for name in targets:
            value, count = tested.get(name, (None, None))
            cells += [text.metric(value, metric) if metric else text.NONE, text.size(count)]
        mark = " best" if found is chosen else " failed" if found.report is None else ""
        table.add_row(found.folder.name + mark, *(json.dumps(value) for value in found.settings.values()), *cells)
    console.print()
    console.print(table)
    if chosen is None:
        console.print(
            "none is called best: no stage looked at the validation split (`keep: best` does)", highlight=False
        )
    console.print(f"\nsweep: {out / FILE_NAME}", markup=False, highlight=False, soft_wrap=True)


def _short(paths: Sequence[str]) -> list[str]:
    """The last key of each path, or the whole path where two end alike."""
    ends = [path.rpartition(".")[2] for path in paths]
    return [end if ends.count(end) == 1 else path for end, path in zip(ends, paths, strict=True)]


def _said(settings: dict[str, Any]) -> str:
    return ", ".join(f"{path}={json.dumps(value)}" for path, value in settings.items())
