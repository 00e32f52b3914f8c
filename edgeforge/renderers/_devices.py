"""What a report says device by device, arranged for Markdown and HTML alike: measured, emulated and estimated apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgeforge.core.measurement import Origin
from edgeforge.core.report import (
    ArtifactRow,
    BenchmarkConditions,
    BudgetRow,
    DeviceRow,
    MeasurementRow,
    OnDevice,
    Report,
    Sustained,
)
from edgeforge.renderers import _text

ORIGINS: tuple[Origin, ...] = ("measured", "emulated", "estimated")
LATENCY, COUNTED = "latency_ms", "instructions"
EXPLAINED: dict[Origin, str] = {
    "measured": "It ran on the device. Medians; brackets are 95 % intervals.",
    "emulated": "The processor was emulated: instructions of one call, which say nothing of caches or of time.",
    "estimated": "Nothing ran: latencies computed from the graph, by a model fitted to other models measured on this "
    "device. The error is its median error on a model left out of the fit.",
}
NO_ESTIMATE = "no estimate: "
"""How the stage `estimate` begins a refusal."""
_LINKS = {"local": "measured directly", "qemu": "emulated with qemu", "browser": "a browser on this machine"}


@dataclass(frozen=True)
class Group:
    """The numbers of one origin on one device: a table, one line for each file (and way to run it)."""

    origin: Origin
    head: tuple[str, ...]
    lines: tuple[tuple[ArtifactRow, tuple[str, ...]], ...]
    words: int = 1
    """How many columns, the last ones, are words and not numbers."""


@dataclass(frozen=True)
class Device:
    """One device. `origins` are those of its numbers, none where it gave no number.

    `absent` says of which files there are no numbers and why, `cautions` why not to believe some of them.
    """

    name: str
    title: str
    about: str
    groups: tuple[Group, ...]
    budgets: tuple[BudgetRow, ...]
    absent: tuple[str, ...]
    answered: tuple[tuple[ArtifactRow, OnDevice], ...]
    sustained: tuple[tuple[ArtifactRow, Sustained], ...]
    cautions: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def origins(self) -> tuple[Origin, ...]:
        return tuple(group.origin for group in self.groups)


def devices(report: Report) -> list[Device]:
    """Every device that a target named or a file was measured on: measured ones first, those without a number last."""
    known = {item.name: item for item in report.devices}
    found = [_device(report, known.get(name) or DeviceRow(name=name)) for name in names(report)]
    return sorted(found, key=lambda device: min(map(ORIGINS.index, device.origins), default=len(ORIGINS)))


def names(report: Report) -> list[str]:
    """Of all devices, in the order of the targets."""
    said = [item.name for item in report.devices]
    for row in report.artifacts:
        said += [item.device for item in row.measurements]
        said += [item.device for item in row.conditions]
    return list(dict.fromkeys(said))


def compared_on(report: Report) -> str | None:
    """The device on which most files have a latency, one that was measured before one that was not."""
    count: dict[str, tuple[int, int]] = {}
    for row in report.artifacts:
        for item in {one.device: one for one in row.measurements if one.metric == LATENCY}.values():
            real, any_ = count.get(item.device, (0, 0))
            count[item.device] = (real + (item.origin == "measured"), any_ + 1)
    return max(count, key=lambda name: count[name], default=None)


def _device(report: Report, said: DeviceRow) -> Device:
    here = [(row, item) for row in report.artifacts for item in row.conditions if item.device == said.name]
    groups = [_group(report, said.name, origin) for origin in ORIGINS]
    chip = report.environment.cpu if said.family == "host" else said.chip
    reached = None if said.link is None else _LINKS.get(said.link, f"over {said.link}")
    return Device(
        name=said.name,
        title=said.title or said.name,
        about=", ".join(filter(None, (chip, reached))),
        groups=tuple(group for group in groups if group is not None),
        budgets=tuple(item for item in report.budgets if item.device == said.name),
        absent=tuple(_by_reason(here)),
        answered=tuple((row, item.on_device) for row, item in here if item.on_device),
        sustained=tuple((row, item.sustained) for row, item in here if item.sustained),
        cautions=tuple(f"{row.name}: {text}" for row, item in here for text in _cautions(item)),
        notes=tuple(dict.fromkeys(text for _, item in here for text in _notes(item))),
    )


def _by_reason(here: Sequence[tuple[ArtifactRow, BenchmarkConditions]]) -> Iterator[str]:
    """Why there are no numbers, or not all, each reason once."""
    reasons: dict[str, list[str]] = {}
    for row, item in here:
        refused = () if item.reason else (item.model_extra or {}).get("refused", ())
        for reason in (item.reason, *refused):
            if reason:
                reasons.setdefault(str(reason), []).append(row.name)
    for reason, files in reasons.items():
        what = "No estimate" if reason.startswith(NO_ESTIMATE) else "No numbers"
        said = reason.removeprefix(NO_ESTIMATE).replace(f"; {NO_ESTIMATE}", "; ")
        yield f"{what} of {', '.join(files)}: {said}"


def _cautions(item: BenchmarkConditions) -> Iterator[str]:
    extra = item.model_extra or {}
    yield from (str(extra[name]) for name in ("partial", "busy") if extra.get(name))


def _notes(item: BenchmarkConditions) -> Iterator[str]:
    extra = item.model_extra or {}
    if extra.get("hardware"):
        yield str(extra["hardware"])
    source = extra.get("merged") or {}
    if {"file", "created"} <= source.keys():
        yield f"measured after the run, {source['created'][:16].replace('T', ' ')} UTC ({source['file']})"


# -- the tables


def _group(report: Report, device: str, origin: Origin) -> Group | None:
    found = []
    for row in report.artifacts:
        items = [item for item in row.measurements if (item.device, item.origin) == (device, origin)]
        for runtime in dict.fromkeys(item.runtime for item in items):
            found.append((row, [item for item in items if item.runtime == runtime]))
    if not found:
        return None
    return _estimated(found) if origin == "estimated" else _ran(report, origin, found)


def _estimated(found: Sequence[tuple[ArtifactRow, list[MeasurementRow]]]) -> Group:
    lines = []
    for row, items in found:
        for item in items:
            basis = item.basis
            error, rows = (f"{100 * basis.error:.1f} %", f"{basis.rows} models") if basis else (_text.NONE, _text.NONE)
            bounds = _text.interval(basis.interval80) if basis else ""
            cells = (_number(item), bounds, error, rows, basis.precision if basis else _text.NONE, item.runtime)
            lines.append((row, cells))
    head = ("file", "latency, ms", "80 % interval", "error", "fitted to", "numbers", "runs on")
    return Group("estimated", head, tuple(lines), words=2)


def _ran(report: Report, origin: Origin, found: Sequence[tuple[ArtifactRow, list[MeasurementRow]]]) -> Group:
    """Every metric is a column; the first has its interval."""
    metrics = list(dict.fromkeys(item.metric for _, items in found for item in items))
    if LATENCY in metrics:
        metrics = [LATENCY, *(name for name in metrics if name != LATENCY)]
    lines = []
    for row, items in found:
        by_metric = {item.metric: item for item in items}
        cells = [_number(by_metric.get(metric)) for metric in metrics]
        first = by_metric.get(metrics[0])
        cells[0] = " ".join(filter(None, (cells[0], _interval(first))))
        lines.append((row, (cells[0], _against_baseline(report, row, items), *cells[1:], items[0].runtime)))
    # Of instructions by class, the first column has said that they are instructions.
    first_name, *others = (_text.quantity(name.removeprefix(f"{COUNTED}_")) for name in metrics)
    return Group(origin, ("file", first_name, "against the baseline", *others, "runtime"), tuple(lines))


def _number(item: MeasurementRow | None) -> str:
    if item is None or item.median is None:
        return _text.NONE
    return _text.amount(item.median) if item.metric.startswith(COUNTED) else _text.significant(item.median)


def _interval(item: MeasurementRow | None) -> str:
    if item is None or item.metric.startswith(COUNTED):  # a count is the same every time
        return ""
    return _text.interval(item.ci95)


def _against_baseline(report: Report, row: ArtifactRow, items: Sequence[MeasurementRow]) -> str:
    device, origin = items[0].device, items[0].origin
    compared = next((item for item in row.latency if (item.device, item.origin) == (device, origin)), None)
    if compared is not None:
        return " ".join(filter(None, (_text.speed(compared), _text.speed_interval(compared))))
    baseline = report.artifact("baseline")
    before = baseline.measurement(COUNTED, device) if baseline and row.name != "baseline" else None
    after = next((item for item in items if item.metric == COUNTED), None)
    if before is None or after is None or not before.median or not after.median:
        return ""
    ratio = before.median / after.median
    if f"{ratio:.2f}" == "1.00":
        return "the same"
    return f"{_text.times(max(ratio, 1 / ratio))} {'fewer' if ratio >= 1 else 'more'}"


# -- what else a device was asked


def answered_cells(found: OnDevice) -> tuple[str, ...]:
    """Samples, the headline metric, agreement with this machine's answers, the largest difference from them, origin."""
    name, value = next(iter((found.metrics or {}).items()), (None, None))
    apart = found.max_abs_difference_from_host
    return (
        str(found.samples),
        f"{_text.words(name)} {_text.metric(value, name)}" if name else found.reason or _text.NONE,
        _text.metric(found.agreement_with_host),
        _text.NONE if apart is None else _text.significant(apart),
        found.origin or _text.NONE,
    )


ANSWERED = ("file", "samples", "its own answers", "as this machine's", "largest difference", "origin")


def sustained_cells(found: Sustained) -> tuple[str, ...]:
    """How long, the first and the last quarter's latency, their ratio with its interval, and the verdict."""
    return (
        f"{found.seconds:.0f} s",
        _text.milliseconds(found.first_quarter_ms),
        _text.milliseconds(found.last_quarter_ms),
        f"{_text.times(found.ratio)} {_text.interval(found.ci95)}",
        found.verdict,
    )


SUSTAINED = ("file", "without a pause", "first quarter", "last quarter", "last over first", "verdict")
