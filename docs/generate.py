"""Writes docs/reference.md, and the tables between markers in README.md, from the code's own descriptions.

Run it after a kind or an option changed: ``python docs/generate.py``. tests/test_readme.py fails until then.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgeforge import catalog

ROOT = Path(__file__).parent.parent
MARKED = re.compile(r"(<!-- table: (?P<name>\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
CHAIN = (
    "tasks",
    "data",
    "models",
    "architectures",
    "stages",
    "students",
    "teachers",
    "losses",
    "structures",
    "criteria",
)
TARGET = ("quantizers", "exporters", "runtimes")


def readme() -> str:
    """README.md with its tables written anew."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return MARKED.sub(lambda match: match[1] + table(match["name"]) + match[3], text)


def reference() -> str:
    """docs/reference.md: every word of a pipeline file."""
    lines = [
        "# Reference",
        "",
        "Written by `docs/generate.py` from the code; `edgeforge explain WORD` shows the same.",
        "",
    ]
    (pipeline,) = catalog.find("pipeline")
    lines += _section(pipeline, "##")
    for axis in catalog.axes():
        lines += [f"## {axis.name}", "", f"{axis.title}.", ""]
        for entry in catalog.entries(axis.name):
            lines += _section(entry, "###")
    return "\n".join(lines).rstrip() + "\n"


def table(name: str) -> str:
    """One of README's tables: ``kinds``, or the options of a word that `explain` knows."""
    if name == "kinds":
        rows = [f"| `{axis}` | {_axis(axis).title} | {_words(axis)} |" for axis in (*CHAIN, *TARGET)]
        return "\n".join(["| folder | what it decides | kinds |", "| --- | --- | --- |", *rows]) + "\n"
    (entry,) = catalog.find(name)
    return "\n".join(_options(entry)) + "\n"


def _axis(name: str) -> catalog.Axis:
    return next(axis for axis in catalog.axes() if axis.name == name)


def _words(axis: str) -> str:
    choosable = (entry for entry in catalog.entries(axis) if getattr(entry.spec, "in_chain", True))
    return ", ".join(f"`{entry.word}`" for entry in choosable)


def _section(entry: catalog.Entry, level: str) -> list[str]:
    lines = [f"{level} {entry.word}", "", entry.text, ""]
    for part in (entry, *entry.parts):
        if part is not entry:
            lines += [f"`{part.word}`: {part.summary}", ""]
        if part.options:
            lines += [*_options(part), ""]
    return lines


def _options(entry: catalog.Entry) -> list[str]:
    rows = [
        f"| `{option.name}` | {_cell(option.type)} | {_default(option.default)} | {_cell(option.description)} |"
        for option in entry.options
    ]
    return ["| key | value | default | what it does |", "| --- | --- | --- | --- |", *rows]


def _default(value: str | None) -> str:
    return "**required**" if value is None else f"`{_cell(value)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
    (ROOT / "docs" / "reference.md").write_text(reference(), encoding="utf-8")
