"""On what a language model was evaluated, and why a metric is not known."""

from __future__ import annotations

from typing import Any

from edgeforge.core.report import Report
from edgeforge.renderers.html import Html
from edgeforge.renderers.markdown import Markdown

EVALUATED = {"windows": 32, "window": 128, "stride": 64, "tokens": 2080, "bytes": 9410}


def test_window_and_stride_stand_below_the_metrics_once_for_all_files(report_data: dict[str, Any]) -> None:
    rows = report_data["artifacts"][:2]
    for row in rows:
        row["evaluated"] = EVALUATED
    rows[1]["metric_reasons"] = {"mean_kld": "the vocabularies differ", "p99_kld": "the vocabularies differ"}
    report = Report.model_validate(report_data)
    names = ", ".join(row["name"] for row in rows)
    wanted = (
        f"Evaluated on 32 windows of 128 tokens, one every 64: 2,080 tokens predicted, 9,410 bytes of text ({names})."
    )
    for page in (Markdown().render(report), Html().render(report)):
        assert page.replace("\\_", "_").count(wanted) == 1
        assert "the vocabularies differ" in page


def test_of_other_models_there_is_nothing_to_say(report: Report) -> None:
    assert "Evaluated on" not in Markdown().render(report) + Html().render(report)
