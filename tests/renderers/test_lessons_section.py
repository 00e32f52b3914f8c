"""What reports say of texts that a teacher wrote, and of who holds to their spec."""

from __future__ import annotations

from typing import Any

import pytest

from edgeforge.core.report import Report
from edgeforge.renderers.html import Html
from edgeforge.renderers.markdown import Markdown

ASKED = {
    "wanted": 40,
    "answers": {"finished": 37, "cut_off": 3},
    "answered_before": 12,
    "input_tokens": 12345,
    "output_tokens": 678,
    "cost": 0.25,
}
YIELDS = [
    {"filter": "spec", "in": 37, "out": 30, "reasons": {"label: none of the <labels>": 7}, "examples": {}},
    {"filter": "duplicates", "in": 30, "out": 24, "reasons": {"there already": 6}, "examples": {}},
]
RATES = {
    name: {"passed": 1, "of": 4, "rate": rate} for name, rate in (("form", 0.9), ("input", 1.0), ("one word", 0.5))
}


@pytest.fixture
def written(report_data: dict[str, Any]) -> dict[str, Any]:
    facts = {"asked": ASKED, "yields": YIELDS, "documents": 24, "pass_rates": RATES}
    row = {"name": "lessons", "kind": "generate", "key": "k", "cached": False, "seconds": 1.0, "facts": facts}
    report_data["stages"] = [row, *report_data["stages"]]
    metrics = {"spec_passed": 0.4, "spec_form": 1.0, "spec_one_word": 0.25}
    report_data["artifacts"][0]["metrics"] = {**report_data["artifacts"][0]["metrics"], **metrics}
    return report_data


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_yield_of_every_filter_and_the_pass_rates_stand_in_the_report(written: dict[str, Any]) -> None:
    report = Report.model_validate(written)
    found = lines(Markdown().render(report))
    assert "## What a teacher wrote: lessons" in found
    said = "24 documents of 40 answers that were asked for (37 finished, 3 cut off); 12,345 input tokens; "
    assert f"{said}678 output tokens; they cost 0.250; 12 of them answered before." in found
    assert "| spec | 37 | 30 | 7 label: none of the &lt;labels&gt; |" in found
    assert "| duplicates | 30 | 24 | 6 there already |" in found
    # A teacher's share is what the spec let through of all answers; what it is given is not a model's to hold to.
    name = written["artifacts"][0]["name"]
    assert f"| part of the spec | lessons, the teacher | {name} |" in found
    assert "| all of it | 81.08 % | 40.00 % |" in found
    assert "| one word | 50.00 % | 25.00 % |" in found
    assert not any(line.startswith("| input |") for line in found)
    page = Html().render(report)
    assert page.count("<h2>What a teacher wrote: lessons</h2>") == page.count("<h2>Held to the spec</h2>") == 1
    assert "7 label: none of the &lt;labels&gt;" in page and "<labels>" not in page


def test_without_a_teacher_that_writes_there_is_no_such_section(report_data: dict[str, Any]) -> None:
    report = Report.model_validate(report_data)
    for text in (Markdown().render(report), Html().render(report)):
        assert "What a teacher wrote" not in text and "Held to the spec" not in text
