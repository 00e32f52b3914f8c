# ruff: noqa: RUF001 (numbers are typeset with real minus and multiplication signs)
from __future__ import annotations

import re
from typing import Any

import pytest

from edgeforge.core.report import Report
from edgeforge.renderers.markdown import Markdown, escape, table


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def rows_of(text: str, title: str) -> dict[str, list[str]]:
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return {cells(line)[0]: cells(line) for line in lines[2:]}


def test_files_with_what_they_won_and_lost(report: Report) -> None:
    rows = rows_of(Markdown().render(report), "Files")
    assert rows["android_int8"][1:7] == [
        "✓ shipped", "onnx, int8_static", "431 kB", "20.4×", "92.81 %", "−0.73 [−1.09, −0.37]",
    ]  # fmt: skip
    assert rows["android_int8"][7].endswith("ms (measured)")
    assert rows["android_int8"][8] == "6.36× faster [6.21, 6.50]"
    assert rows["web_dynamic"][8] == "1.01×, no difference shown [0.985, 1.04]"
    assert rows["android_entropy"][1] == "✗ quarantined"
    assert rows["watch"][1:4] == ["- absent", "coreml", "–"]


def test_every_table_is_a_table(report: Report) -> None:
    blocks = re.findall(r"(?:^\|.*\|\n)+", Markdown().render(report), re.MULTILINE)
    assert len(blocks) == 8
    for block in blocks:
        assert len({len(cells(line)) for line in block.splitlines()}) == 1
        assert len({len(line) for line in block.splitlines()}) == 1, "columns are aligned in the source too"


def test_hostile_labels_stay_text(report: Report) -> None:
    text = Markdown().render(report)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert r"Bag\|tote" in text


@pytest.mark.parametrize(
    ("raw", "safe"),
    [
        ("host_cpu", "host_cpu"),
        ("_emphasis_", r"\_emphasis\_"),
        ("a*b*c `x`", r"a\*b\*c \`x\`"),
        ("[text](http://x)", r"\[text\](http://x)"),
        ("two\nlines", "two lines"),
        ("AT&T &lt;", "AT&T &amp;lt;"),
    ],
)
def test_escaping(raw: str, safe: str) -> None:
    assert escape(raw) == safe


def test_an_empty_table_is_left_out() -> None:
    assert table(["a"], []) == []


def test_a_report_of_nothing_renders(report_data: dict[str, Any]) -> None:
    report_data |= {"stages": [], "artifacts": [], "budgets": [], "warnings": []}
    text = Markdown().render(Report.model_validate(report_data))
    assert text.startswith("# fashion-phone\n")
    assert "None" not in text
