"""Charts as inline SVG. Colours come from the page's CSS variables, so they follow its light and dark scheme."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup, escape

from edgeforge.core.measurement import Origin
from edgeforge.core.report import FALLING, StageRow, Status
from edgeforge.renderers import _text
from edgeforge.renderers._axis import Axis, axis_for

CHARACTER_PX = 6.1
LEAST_SPAN = 0.01
"""A smaller difference in accuracy than one point does not fill a chart."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Point:
    """One file in a chart. `series` numbers its colour, 0 is the baseline; `x_range`, `y_range` are 95 % intervals."""

    name: str
    x: float
    y: float
    series: int
    status: Status = "shipped"
    origin: Origin = "measured"
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    note: str = ""


def scatter(
    points: Sequence[Point], *, metric: str | None, title: str, x_axis: tuple[str, Callable[[float], str]]
) -> Markup:
    """`y` is `metric`. Labels are placed where they cover least. `x_axis`: what it says, and how it writes a number.

    Quarantined files do not stretch the axis: one that falls off it stands at its lower end with its number.
    """
    width, height = 460, 300
    left, top, right, bottom = 52, 14, width - 14, height - 44
    xs = [value for point in points for value in (point.x, *(point.x_range or ()))]
    sound = [point for point in points if point.status != "quarantined"] or points
    ys = [value for point in sound for value in (point.y, *(point.y_range or ()))]
    x_title, x_text = x_axis
    across = axis_for(xs, (left, right))
    up = axis_for([*ys, max(ys) - LEAST_SPAN], (bottom, top), log=False)
    points = [_kept_inside(point, up, metric) for point in points]
    parts = [_grid(across, up, (x_text, "{:g}".format if metric in FALLING else percent))]
    middle = (left + right) / 2
    parts.append(f'<text class="title" x="{middle}" y="{height - 6}" text-anchor="middle">{escape(x_title)}</text>')
    taken = [box for point in points for box in _covered(point, across, up)]
    for point in points:
        parts.append(_marker(point, across, up))
    for point in points:
        x, y, anchor, box = _free_place(across(point.x), up(point.y), point.name, (taken, (left, top, right, bottom)))
        taken.append(box)
        parts.append(f'<text class="name" x="{x}" y="{y}" text-anchor="{anchor}">{escape(point.name)}</text>')
    return drawing(width, height, title, parts)


def percent(value: float) -> str:
    """A share on an axis."""
    return f"{100 * value:g}%"


def _kept_inside(point: Point, y_axis: Axis, metric: str | None) -> Point:
    if y_axis.low <= point.y <= y_axis.high:
        return point
    low = y_axis.low + 0.04 * (y_axis.high - y_axis.low)
    high = y_axis.high - 0.04 * (y_axis.high - y_axis.low)
    name = f"{point.name} {'↓' if point.y < low else '↑'} {_text.metric(point.y, metric)}"
    return replace(point, y=min(max(point.y, low), high), y_range=None, name=name)


def _grid(x_axis: Axis, y_axis: Axis, texts: tuple[Callable[[float], str], Callable[[float], str]]) -> str:
    parts, (x_text, y_text) = [], texts
    for value in y_axis.ticks():
        y = y_axis(value)
        parts.append(f'<line class="grid" x1="{x_axis.start}" x2="{x_axis.end}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{x_axis.start - 7}" y="{y + 4}" text-anchor="end">{y_text(value)}</text>')
    parts.append(f'<line class="axis" x1="{x_axis.start}" x2="{x_axis.end}" y1="{y_axis.start}" y2="{y_axis.start}"/>')
    for value in x_axis.ticks():
        x = x_axis(value)
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{y_axis.start}" y2="{y_axis.start + 4}"/>')
        parts.append(
            f'<text class="tick" x="{x}" y="{y_axis.start + 17}" text-anchor="middle">{escape(x_text(value))}</text>'
        )
    return "".join(parts)


def _marker(point: Point, x_axis: Axis, y_axis: Axis) -> str:
    x, y = x_axis(point.x), y_axis(point.y)
    bars = ""
    if point.x_range:
        bars += (
            f'<line class="error" x1="{x_axis(point.x_range[0])}" x2="{x_axis(point.x_range[1])}" y1="{y}" y2="{y}"/>'
        )
    if point.y_range:
        bars += (
            f'<line class="error" x1="{x}" x2="{x}" y1="{y_axis(point.y_range[0])}" y2="{y_axis(point.y_range[1])}"/>'
        )
    return (
        f'<g style="--c:{colour(point.series)}"><title>{escape(point.name)}: {escape(point.note)}</title>{bars}'
        f"{symbol(x, y, point.status, point.origin, baseline=point.series == 0)}</g>"
    )


def symbol(x: float, y: float, status: Status, origin: Origin, *, baseline: bool = False) -> str:
    """Diamond: baseline; disc: shipped; cross: quarantined. Hollow where the number is not a measurement."""
    hollow = " hollow" if origin != "measured" else ""
    if status == "quarantined":
        return f'<path class="cross" d="M{x - 5} {y - 5}l10 10m0 -10l-10 10"/>'
    if baseline:
        return f'<path class="dot{hollow}" d="M{x} {y - 7}l7 7l-7 7l-7 -7z"/>'
    return f'<circle class="dot{hollow}" cx="{x}" cy="{y}" r="5.5"/>'


def colour(series: int) -> str:
    """The CSS colour of a series; 0 is the baseline's."""
    return "var(--s0)" if series == 0 else f"var(--s{(series - 1) % 6 + 1})"


def _free_place(
    x: float, y: float, name: str, surroundings: tuple[Sequence[Box], Box]
) -> tuple[float, float, str, Box]:
    """Where a label beside (x, y) covers least of what is taken and stays inside the frame."""
    taken, frame = surroundings
    length = CHARACTER_PX * len(name)
    best: tuple[float, tuple[float, float, str, Box]] | None = None
    for distance in (10.0, 24.0):
        for dx, dy in ((1, 0), (-1, 0), (1, -1), (1, 1), (-1, -1), (-1, 1), (0, -1), (0, 1)):
            anchor = {1: "start", -1: "end", 0: "middle"}[dx]
            at_x = x + dx * 10
            at_y = y + dy * (distance + 3) + 4
            left = at_x - {"start": 0, "end": length, "middle": length / 2}[anchor]
            box = (left, at_y - 11, left + length, at_y + 2)
            cost = (
                sum(_overlap(box, other) for other in taken) + 4 * (_area(box) - _overlap(box, frame)) + distance / 10
            )
            if best is None or cost < best[0]:
                best = (cost, (round(at_x, 1), round(at_y, 1), anchor, box))
    assert best is not None
    return best[1]


def _covered(point: Point, x_axis: Axis, y_axis: Axis) -> list[Box]:
    """What a point's mark and its intervals take up."""
    x, y = x_axis(point.x), y_axis(point.y)
    boxes = [(x - 7, y - 7, x + 7, y + 7)]
    if point.x_range:
        boxes.append((x_axis(point.x_range[0]), y - 2, x_axis(point.x_range[1]), y + 2))
    if point.y_range:
        boxes.append((x - 2, y_axis(point.y_range[1]), x + 2, y_axis(point.y_range[0])))
    return boxes


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _overlap(one: Box, two: Box) -> float:
    return _area((max(one[0], two[0]), max(one[1], two[1]), min(one[2], two[2]), min(one[3], two[3])))


@dataclass(frozen=True)
class Strip:
    """The raw samples of one file, in ms."""

    name: str
    series: int
    samples: Sequence[float]
    median: float
    ci95: tuple[float, float]


def strips(rows: Sequence[Strip], *, title: str) -> Markup:
    """Every sample as a dot, the median as a line, its 95 % interval as a band."""
    width, row_height = 920, 40
    left, right, top = 150, width - 92, 6
    bottom = top + row_height * len(rows)
    axis = axis_for([sample for row in rows for sample in row.samples], (left, right))
    parts = []
    for value in axis.ticks():
        parts.append(f'<line class="grid" x1="{axis(value)}" x2="{axis(value)}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{axis(value)}" y="{bottom + 17}" text-anchor="middle">{value:g}</text>')
    for index, row in enumerate(rows):
        y = top + row_height * (index + 0.5)
        jitter = random.Random(index)  # a picture of the same numbers is the same picture
        dots = "".join(
            f'<circle class="sample" cx="{axis(sample)}" cy="{round(y + jitter.uniform(-9, 9), 1)}" r="2.6"/>'
            for sample in row.samples
        )
        low, high, median = axis(row.ci95[0]), axis(row.ci95[1]), axis(row.median)
        parts.append(
            f'<g style="--c:{colour(row.series)}"><text class="name" x="{left - 12}" y="{y + 4}" text-anchor="end">'
            f'{escape(shortened(row.name, 22))}</text>{dots}<rect class="band" x="{low}" y="{y - 13}" '
            f'width="{max(1.0, round(high - low, 2))}" height="26"/>'
            f'<line class="median" x1="{median}" x2="{median}" y1="{y - 13}" y2="{y + 13}"/>'
            f'<text class="value" x="{right + 8}" y="{y + 4}">{_text.milliseconds(row.median)}</text></g>'
        )
    parts.append(
        f'<text class="title" x="{(left + right) / 2}" y="{bottom + 35}" text-anchor="middle">ms per call</text>'
    )
    return drawing(width, bottom + 42, title, parts)


def chain(stages: Sequence[StageRow], *, title: str) -> Markup:
    """Three panels over the same columns: the headline metric, parameters, multiply-accumulates."""
    column, left, panel = 124, 92, 84
    width = left + column * len(stages)
    parts, top = [], 10.0
    metric = next((name for row in stages for name in row.facts.metrics), None)
    centres = [left + column * (index + 0.5) for index in range(len(stages))]
    if metric is not None:
        values = [row.facts.metrics.get(metric) for row in stages]
        parts.append(_line_panel(metric, centres, values, top))
        top += panel
    for name, counts in (
        ("parameters", [row.facts.params for row in stages]),
        ("MACs", [row.facts.macs for row in stages]),
    ):
        if any(counts):
            parts.append(_bar_panel(name, centres, counts, top))
            top += panel
    for centre, row in zip(centres, stages, strict=True):
        label = shortened(row.name, 16)
        parts.append(f'<text class="name" x="{centre}" y="{top + 8}" text-anchor="middle">{escape(label)}</text>')
    return drawing(width, round(top + 16), title, parts)


def _line_panel(name: str, centres: Sequence[float], values: Sequence[float | None], top: float) -> str:
    known = [(x, value) for x, value in zip(centres, values, strict=True) if value is not None]
    axis = axis_for([value for _, value in known], (top + 62, top + 26), log=False)
    parts = [_panel_title(_text.words(name), top)]
    path = " ".join(f"{x},{axis(value)}" for x, value in known)
    parts.append(f'<polyline class="trend" points="{path}"/>')
    for x, value in known:
        y = axis(value)
        parts.append(f'<circle class="dot" style="--c:var(--accent)" cx="{x}" cy="{y}" r="4.5"/>')
        parts.append(
            f'<text class="value" x="{x}" y="{y - 10}" text-anchor="middle">{_text.metric(value, name)}</text>'
        )
    return "".join(parts)


def _bar_panel(name: str, centres: Sequence[float], counts: Sequence[int | None], top: float) -> str:
    highest = max(count or 0 for count in counts)
    parts = [_panel_title(name, top)]
    for x, count in zip(centres, counts, strict=True):
        if count is not None:
            height = max(1.0, round(44 * count / highest, 1))
            y = top + 68 - height
            parts.append(f'<rect class="bar" x="{x - 26}" y="{y}" width="52" height="{height}" rx="2"/>')
            parts.append(f'<text class="value" x="{x}" y="{y - 5}" text-anchor="middle">{_text.amount(count)}</text>')
    return "".join(parts)


def _panel_title(name: str, top: float) -> str:
    return f'<text class="title" x="0" y="{top + 48}">{escape(name)}</text>'


def spark(values: Sequence[float], *, of: str = "loss") -> Markup:
    """A curve the size of a word; `of` says what it is of."""
    if len(values) < 2:
        return Markup("")
    axis = axis_for(values, (22, 2), log=False)
    step = 84 / (len(values) - 1)
    path = " ".join(f"{round(3 + index * step, 1)},{axis(value)}" for index, value in enumerate(values))
    label = f"{of} from {_text.significant(values[0])} to {_text.significant(values[-1])}"
    return Markup(
        f'<svg class="spark" viewBox="0 0 90 24" role="img" aria-label="{label}"><title>{label}</title>'
        f'<polyline class="trend" points="{path}"/></svg>'
    )


def shortened(text: str, length: int) -> str:
    """The beginning of a text that is too long."""
    return text if len(text) <= length else text[: length - 1] + "…"


def drawing(width: float, height: float, title: str, parts: Iterable[str]) -> Markup:
    """The whole picture; `parts` are markup, their texts escaped."""
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" style="--w:{width}px" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
