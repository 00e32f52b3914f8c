"""What became of the prompts of each group, file by file: for Markdown and HTML alike."""

from __future__ import annotations

from dataclasses import dataclass

from edgeforge.core.report import Report
from edgeforge.renderers import _text


@dataclass(frozen=True)
class Groups:
    """A table: the first two cells of a line name a file and a group, the others are numbers."""

    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def prompt_groups(report: Report) -> Groups | None:
    """None where no prompt has a group."""
    rows = [row for row in report.artifacts if row.prompt_groups]
    names = list(dict.fromkeys(name for row in rows for found in row.prompt_groups.values() for name in found))
    lines = tuple(
        (
            row.name,
            group,
            *(f"{found[name]:.0f}" if name == "prompts" else _text.metric(found.get(name), name) for name in names),
        )
        for row in rows
        for group, found in row.prompt_groups.items()
    )
    return Groups(("file", "group", *map(_text.words, names)), lines) if rows else None
