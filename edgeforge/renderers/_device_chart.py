"""Charts over devices, as inline SVG: one lane for each device and way to know its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from edgeforge.core.measurement import Origin
from edgeforge.core.report import ArtifactRow, MeasurementRow, Report, Status
from edgeforge.renderers import _text
from edgeforge.renderers._axis import Axis, axis_for
from edgeforge.renderers._charts import CHARACTER_PX, colour, drawing, shortened, symbol
from edgeforge.renderers._devices import COUNTED, LATENCY, ORIGINS, devices

WIDTH = 920.0
LEAST_HEIGHT, POINT_HEIGHT = 42, 15
"""Pixels of a lane, and of each file in it."""
LONGEST = 30
"""Characters of a device's name."""


@dataclass(frozen=True)
class Mark:
    """One file in a lane. `low` and `high` are its interval, of 95 % or, of an estimate, of 80 %."""

    name: str
    series: int
    status: Status
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Lane:
    """One device, runtime and origin."""

    name: str
    detail: str
    origin: Origin
    marks: tuple[Mark, ...]


def latencies(report: Report, series: Mapping[str, int]) -> Markup | None:
    """Latency of every file on every device, measured and estimated; None where fewer than two devices have one."""
    lanes = _lanes(report, LATENCY, series)
    if len({lane.name for lane in lanes}) < 2:
        return None
    texts = any(row.measurement("decode_tokens_per_s") for row in report.artifacts)
    axis = (f"ms per {'token' if texts else 'call'}", "{:g}".format, _text.milliseconds)
    return draw(lanes, title="latency, device by device", axis=axis)


def instructions(report: Report, series: Mapping[str, int]) -> Markup | None:
    """Instructions of a call on emulated processors; None where nothing was emulated."""
    lanes = _lanes(report, COUNTED, series)
    axis = ("instructions per call", _text.amount, _text.amount)
    return draw(lanes, title="instructions, processor by processor", axis=axis) if lanes else None


def _lanes(report: Report, metric: str, series: Mapping[str, int]) -> list[Lane]:
    found = []
    for device in devices(report):
        items = [
            (row, item)
            for row in report.artifacts
            for item in row.measurements
            if (item.device, item.metric) == (device.name, metric) and item.median
        ]
        for origin in ORIGINS:
            here = [(row, item) for row, item in items if item.origin == origin]
            units = dict.fromkeys(_unit(item) for _, item in here)
            for unit in units:
                marks = tuple(_mark(row, item, series) for row, item in here if _unit(item) == unit)
                detail = f"{origin}, {unit}" if unit else origin
                found.append(Lane(device.title, detail, origin, marks))
    return sorted(found, key=lambda lane: ORIGINS.index(lane.origin))


def _unit(item: MeasurementRow) -> str:
    return item.basis.unit.upper() if item.basis else ""


def _mark(row: ArtifactRow, item: MeasurementRow, series: Mapping[str, int]) -> Mark:
    value = item.median or 0.0
    low, high = item.basis.interval80 if item.basis else item.ci95
    return Mark(row.name, series[row.name], row.status, value, value if low is None else low, high or value)


def draw(
    lanes: Sequence[Lane], *, title: str, axis: tuple[str, Callable[[float], str], Callable[[float], str]]
) -> Markup:
    """One lane under the other; `axis` is what it says, how it writes a tick, and how a value."""
    says, tick, said = axis
    left = 24 + CHARACTER_PX * max(len(shortened(lane.name, LONGEST)) for lane in lanes)
    right, top = WIDTH - 30, 8.0
    values = [value for lane in lanes for mark in lane.marks for value in (mark.value, mark.low, mark.high)]
    across = axis_for([value for value in values if value > 0], (left + 14, right))
    heights = [max(LEAST_HEIGHT, POINT_HEIGHT * len(lane.marks) + 12) for lane in lanes]
    bottom, parts = top + sum(heights), []
    y = top
    for lane, height in zip(lanes, heights, strict=True):
        if lane.origin != "measured":
            parts.append(f'<rect class="lane" x="0" y="{y}" width="{WIDTH}" height="{height}"/>')
        y += height
    for value in across.ticks():
        x = across(value)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{bottom + 17}" text-anchor="middle">{escape(tick(value))}</text>')
    y = top
    for lane, height in zip(lanes, heights, strict=True):
        parts.append(_lane(lane, across, (left, y, height), said))
        y += height
    middle = (across.start + across.end) / 2
    parts.append(f'<text class="title" x="{middle}" y="{bottom + 35}" text-anchor="middle">{escape(says)}</text>')
    return drawing(WIDTH, bottom + 42, title, parts)


def _lane(lane: Lane, across: Axis, place: tuple[float, float, float], said: Callable[[float], str]) -> str:
    left, top, height = place
    middle = top + height / 2
    parts = [
        f'<line class="grid" x1="0" x2="{WIDTH}" y1="{top + height}" y2="{top + height}"/>',
        f'<text class="name" x="{left}" y="{middle - 2}" text-anchor="end">{escape(shortened(lane.name, LONGEST))}'
        f"<title>{escape(lane.name)}</title></text>",
        f'<text class="detail {lane.origin}" x="{left}" y="{middle + 12}" text-anchor="end">'
        f"{escape(lane.detail)}</text>",
    ]
    first = middle - POINT_HEIGHT * (len(lane.marks) - 1) / 2
    for number, mark in enumerate(lane.marks):
        x, y = across(mark.value), round(first + POINT_HEIGHT * number, 1)
        note = f"{mark.name}: {said(mark.value)} [{said(mark.low)}, {said(mark.high)}], {lane.detail}"
        bar = ""
        if mark.high > mark.low > 0:
            bar = f'<line class="error" x1="{across(mark.low)}" x2="{across(mark.high)}" y1="{y}" y2="{y}"/>'
        parts.append(
            f'<g style="--c:{colour(mark.series)}"><title>{escape(note)}</title>{bar}'
            f"{symbol(x, y, mark.status, lane.origin, baseline=mark.series == 0)}"
            f"{_value(mark, across, y, said(mark.value))}</g>"
        )
    return f"<g>{''.join(parts)}</g>"


def _value(mark: Mark, across: Axis, y: float, text: str) -> str:
    """The number, right of the mark and its interval, or left of them where there is no room."""
    start = max(across(mark.high), across(mark.value)) + 11
    if start + CHARACTER_PX * len(text) <= across.end + 24:
        return f'<text class="value" x="{start}" y="{y + 4}">{escape(text)}</text>'
    end = min(across(mark.low) if mark.low > 0 else across(mark.value), across(mark.value)) - 11
    return f'<text class="value" x="{end}" y="{y + 4}" text-anchor="end">{escape(text)}</text>'
