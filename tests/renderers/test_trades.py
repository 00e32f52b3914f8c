"""Tables of models that were trained together."""

from __future__ import annotations

from typing import Any

from edgeforge.core.report import Report
from edgeforge.renderers._trades import trades
from edgeforge.renderers.html import Html
from edgeforge.renderers.markdown import Markdown


def sizes(params: int) -> dict[str, int]:
    return {"params": params, "macs": 10 * params, "size_bytes": 4 * params}


def with_stages(data: dict[str, Any]) -> Report:
    exits = [
        {"after": place, "metric": "accuracy", "validation": value, **sizes(params)}
        for place, value, params in ((0, 0.81, 1000), (1, 0.9, 2500), ("last", 0.925, 9000))
    ]
    members = [
        {"student": "copy", "metric": "perplexity", "before": 20.5, "after": 18.25, **sizes(5000)},
        {"student": "<b>", "metric": "perplexity", "before": 90.0, "after": 19.5, **sizes(2000)},
    ]
    data["stages"][2]["facts"] |= {"exits": exits, "used": 1}
    data["stages"][4]["facts"] |= {"members": members, "used": 0}
    return Report.model_validate(data)


def test_every_exit_and_every_student_has_its_line_and_the_one_used_is_marked(report_data: dict[str, Any]) -> None:
    report = with_stages(report_data)
    ends, students = trades(report)
    assert ends.lines[1] == ("after block 1", "90.00 %", "2.50 k", "25.0 k", "10.0 kB")
    assert ends.lines[2][0] == "at its own end"
    assert students.lines[0] == ("0: copy", "20.50", "18.25", "5.00 k", "50.0 k", "20.0 kB")
    assert (ends.used, students.used) == (1, 0)
    markdown, html = Markdown().render(report), Html().render(report)
    section = markdown.split("## Where the model could end: distill\n")[1].split("\n## ")[0]
    assert [line.rstrip(" |").endswith("used") for line in section.splitlines() if "block" in line] == [False, True]
    assert "## Students that taught each other: prune.recover" in markdown
    assert html.count('<span class="badge yes">used</span>') == 2
    assert "1: <b>" not in html and "1: &lt;b&gt;" in html


def test_a_model_that_was_trained_alone_has_none(report: Report) -> None:
    assert list(trades(report)) == []
