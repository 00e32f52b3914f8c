"""Which classes a teacher and its students find alike, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from edgeforge.renderers import _text
from edgeforge.renderers._axis import Axis, axis_for
from edgeforge.renderers._charts import CHARACTER_PX, colour, drawing, percent, shortened, symbol
from edgeforge.renderers._teacher import PairLine

ROW_HEIGHT = 38
LONGEST = 36
"""Characters of a pair's name."""
SPREAD = 9.0
"""Pixels above and below the middle of a row, over which students' dots are spread: many lie at the same place."""
INK = "var(--ink)"


@dataclass(frozen=True)
class Student:
    """One column of the chart. `series` numbers its colour."""

    name: str
    series: int


def pairs(lines: Sequence[PairLine], students: Sequence[Student], *, title: str) -> Markup:
    """One row for each pair of classes: the teacher's probability as a diamond, every student's as a disc."""
    left = 30 + CHARACTER_PX * max(len(shortened(line.name, LONGEST)) for line in lines)
    width, right, top = 920, 890, 8
    bottom = top + ROW_HEIGHT * len(lines)
    values = [value for line in lines for value in (line.teacher, *(one[0] for one in line.students if one))]
    axis = axis_for(values, (left, right), log=False)
    parts = []
    for value in axis.ticks():
        x = axis(value)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{bottom + 17}" text-anchor="middle">{percent(value)}</text>')
    for index, line in enumerate(lines):
        parts.append(_row(line, students, axis, top + ROW_HEIGHT * (index + 0.5)))
    parts.append(
        f'<text class="title" x="{(left + right) / 2}" y="{bottom + 35}" text-anchor="middle">'
        "mean probability of one class for samples of the other</text>"
    )
    return drawing(width, bottom + 42, title, parts)


def _row(line: PairLine, students: Sequence[Student], axis: Axis, y: float) -> str:
    label = f'<text class="name" x="{axis.start - 14}" y="{y + 4}" text-anchor="end">'
    parts = [f"<title>{escape(line.name)}</title>{label}{escape(shortened(line.name, LONGEST))}</text>"]
    known = [axis(line.teacher), *(axis(one[0]) for one in line.students if one)]
    parts.append(f'<line class="axis" x1="{min(known)}" x2="{max(known)}" y1="{y}" y2="{y}"/>')
    step = 2 * SPREAD / max(1, len(students) - 1)
    for number, (student, one) in enumerate(zip(students, line.students, strict=True)):
        if one is not None:
            at = y if len(students) == 1 else round(y - SPREAD + number * step, 1)
            said = f"{student.name}: {_text.metric(one[0])}, rank {one[1]}"
            parts.append(
                f'<g style="--c:{colour(student.series)}"><title>{escape(said)}</title>'
                f"{symbol(axis(one[0]), at, 'shipped', 'measured')}</g>"
            )
    parts.append(
        f'<g style="--c:{INK}"><title>teacher: {_text.metric(line.teacher)}</title>'
        f"{symbol(axis(line.teacher), y, 'shipped', 'measured', baseline=True)}</g>"
    )
    return f"<g>{''.join(parts)}</g>"
