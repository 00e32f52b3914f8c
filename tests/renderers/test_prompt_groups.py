"""The table of prompts by their group."""

from __future__ import annotations

from typing import Any

from edgeforge.core.report import Report
from edgeforge.renderers import _text
from edgeforge.renderers._prompt_groups import prompt_groups
from edgeforge.renderers.html import Html
from edgeforge.renderers.markdown import Markdown


def test_each_group_of_each_file_has_a_line(report_data: dict[str, Any]) -> None:
    found = {"prompts": 20, "prompts_passed": 0.25, "tokens_per_answer": 12.5}
    report_data["artifacts"][1]["prompt_groups"] = {"2+2": found, "<5+5>": {**found, "prompts_passed": None}}
    report = Report.model_validate(report_data)
    groups = prompt_groups(report)
    assert groups is not None
    name = report.artifacts[1].name
    assert groups.lines == ((name, "2+2", "20", "25.00 %", "12.50"), (name, "<5+5>", "20", _text.NONE, "12.50"))
    markdown, html = Markdown().render(report), Html().render(report)
    assert "## Prompts, group by group" in markdown
    assert "&lt;5+5&gt;" in html and "<5+5>" not in html and ">25.00 %<" in html


def test_without_groups_there_is_no_table(report_data: dict[str, Any]) -> None:
    report = Report.model_validate(report_data)
    assert prompt_groups(report) is None
    assert "group by group" not in Html().render(report)
