"""The sections of report.md on devices: one for each, with what was measured, emulated and estimated apart."""

from __future__ import annotations

from collections.abc import Iterator

from edgeforge.core.report import Report
from edgeforge.renderers import _devices, _text
from edgeforge.renderers._table import escape, table

_KEPT = {True: "✓ kept", False: "✗ missed", None: f"{_text.NONE} not measured, which is allowed"}


def section(report: Report) -> list[str]:
    """All of it, as lines; empty where no device was asked."""
    found = _devices.devices(report)
    if not found:
        return []
    lines = ["## Devices"]
    for device in found:
        lines += ["", *_device(device)]
    return lines


def _device(device: _devices.Device) -> Iterator[str]:
    state = ", ".join(device.origins) or "absent"
    named = f" (`{device.name}`)" if device.title != device.name else ""
    yield f"### {escape(device.title)}{named}: {state}"
    if device.about:
        yield from ("", f"{escape(device.about[:1].upper() + device.about[1:])}.")
    for group in device.groups:
        head = [group.head[0], *map(escape, group.head[1:])]
        last = len(head) - group.words
        body = [[escape(row.name), *cells[: last - 1], *map(escape, cells[last - 1 :])] for row, cells in group.lines]
        yield from ("", f"**{group.origin.capitalize()}.** {_devices.EXPLAINED[group.origin]}", "")
        yield from table(head, body, right=range(1, last))
    if device.answered:
        body = [[escape(row.name), *map(escape, _devices.answered_cells(one))] for row, one in device.answered]
        yield from ("", "Its own answers to test samples:", "", *table(_devices.ANSWERED, body, right=(1, 3, 4)))
    if device.sustained:
        body = [[escape(row.name), *_devices.sustained_cells(one)] for row, one in device.sustained]
        yield from ("", "Without a pause:", "", *table(_devices.SUSTAINED, body, right=(1, 2, 3, 4)))
    said = (*device.absent, *device.cautions, *device.notes)
    if bullets := [*_limits(device), *(f"- {escape(text)}" for text in said)]:
        yield from ("", *bullets)


def _limits(device: _devices.Device) -> Iterator[str]:
    for limit in device.budgets:
        value, most = _text.budget_numbers(limit)
        why = f": {escape(limit.reason)}" if limit.reason else ""
        what = _text.words(limit.metric.removesuffix("_ms"))
        yield f"- Budget {_KEPT[limit.kept]}: {escape(limit.target)}, {what} {value}, limit {most}{why}"
