# ruff: noqa: RUF001 (numbers are typeset with real minus signs and dashes)
"""What a teacher adds to a report, in both formats; and what an old report leaves out."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from edgeforge.comparison import compare, groups, unasked
from edgeforge.core.report import Report
from edgeforge.renderers import _teacher
from edgeforge.renderers.html import Html
from edgeforge.renderers.markdown import Markdown

HOSTILE = "<b>over</b> 10 | words & `code`"
NAMES = ["T-shirt", "Trouser", "<script>alert('shirt')</script>", "Coat"]
LABELS = np.random.default_rng(0).integers(0, 4, 400)


def logits(seed: int, spread: float) -> np.ndarray:
    return 3 * np.eye(4)[LABELS] + np.random.default_rng(seed).normal(scale=spread, size=(400, 4))


def comparison(seed: int, spread: float) -> dict[str, Any]:
    teacher, student = logits(1, 1.0), logits(seed, spread)
    found = compare(teacher, student, LABELS, NAMES, temperature=2.0).model_dump(mode="json")
    members = np.arange(400) % 2
    cut = groups(teacher, student, LABELS, (HOSTILE, "else"), members)
    return {
        **found,
        "teacher": "train",
        "slices": [{"rule": "words <i>", "groups": [one.model_dump(mode="json") for one in cut]}],
        "probe": {
            "n": 30,
            "teacher_confidence": 0.71,
            "student_confidence": 0.83,
            "agreement": 0.5,
            "ci95": [0.33, 0.67],
        },
    }


COST = {
    "unit": "answers",
    "device": "host_cpu",
    "seconds_per_1000": 0.034,
    "teacher_seconds_per_1000": 0.215,
    "making_seconds": 400.0,
    "break_even_by_time": 2209945,
    "assumptions": ["one at a time", "made here"],
}
LINEAGE = {
    "sources": [
        {"what": "model", "step": "model", "kind": "config", "licence": "your own"},
        {
            "what": "teacher",
            "step": "train",
            "kind": "pretrained",
            "place": "big<teacher>",
            "digest": "ab" * 32,
            "licence": "cc-by-nc-4.0",
            "licence_from": "README.md",
            "details": {"served_by": ["a", "b"]},
        },
        {"what": "data", "kind": "npz", "place": "fashion.npz"},
    ],
    "steps": [
        {"name": "train", "kind": "train", "key": "k", "digest": "cd" * 32, "training_steps": 1234, "seconds": 61.0},
        {"name": "distill", "kind": "distill", "key": "k"},
    ],
}


@pytest.fixture
def taught(report_data: dict[str, Any]) -> dict[str, Any]:
    report_data.update(teacher="train", lineage=LINEAGE)
    for row, changes in zip(
        report_data["artifacts"],
        (
            {"against_teacher": comparison(1, 1.0)},
            {"against_teacher": comparison(2, 1.4), "costs": [COST]},
            {"against_teacher": comparison(3, 1.2), "costs": [{**COST, "break_even_by_time": None,
                                                               "time_reason": "it is slower"}]},
            {"against_teacher": {"teacher": "train", "reason": "the file was not evaluated: no <runtime>"}},
            {"against_teacher": comparison(4, 3.0)},
            {},
        ),
        strict=True,
    ):  # fmt: skip
        row.update(changes)
    return report_data


def html(data: dict[str, Any]) -> str:
    return Html().render(Report.model_validate(data))


def markdown(data: dict[str, Any]) -> str:
    return Markdown().render(Report.model_validate(data))


class Checker(HTMLParser):
    """Every tag is closed, and none is one of ours by injection."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag != "script"
        if tag not in ("meta", "link", "br", "line", "circle", "path", "rect", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("line", "circle", "path", "rect", "polyline"):
            return
        assert self.open.pop() == tag


# -- HTML


def test_every_section_is_there_and_sound(taught: dict[str, Any]) -> None:
    page = html(taught)
    for title in (
        "What the student lost",
        "Change per class, against the teacher",
        "Change per slice, against the teacher",
        "Classes that look alike",
        "The probe",
        "What answers cost",
        "Where it comes from",
    ):
        assert page.count(f"<h2>{title}</h2>") == 1
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert "2,209,945 answers" in page and "it is slower" in page and "<li>made here</li>" in page
    assert "not compared: the file was not evaluated: no &lt;runtime&gt;" in page


def test_names_from_a_users_data_are_escaped(taught: dict[str, Any]) -> None:
    page = html(taught)
    assert "<b>over</b>" not in page and "&lt;b&gt;over&lt;/b&gt; 10 | words &amp; `code`" in page
    assert "words <i>" not in page and "big<teacher>" not in page and "<script>alert" not in page
    assert "&lt;script&gt;alert(&#39;shirt&#39;)&lt;/script&gt; / Coat" in page, "in the chart as well"


def test_a_bar_is_pale_where_the_interval_includes_no_change(taught: dict[str, Any]) -> None:
    table = html(taught).partition("Change per class, against the teacher")[2].partition("</table>")[0]
    bars = re.findall(r'title="\[(.+?), (.+?)\]">.*?<i class="(\w+)( unsure)?"', table)
    assert len(bars) == 4 * 2
    for low, high, _, unsure in bars:
        bounds = [float(text.replace("−", "-").replace("±", "")) for text in (low, high)]
        assert bool(unsure) == (bounds[0] <= 0 <= bounds[1])


def test_only_shipped_files_have_columns_and_the_baseline_has_none_where_it_taught(taught: dict[str, Any]) -> None:
    report = Report.model_validate(taught)
    assert [row.name for row, _ in _teacher.columns(report)] == ["android_int8", "web_dynamic"]
    other = Report.model_validate({**taught, "teacher": "teacher"})
    assert [row.name for row, _ in _teacher.columns(other)] == ["baseline", "android_int8", "web_dynamic"]


def test_the_change_against_the_baseline_is_left_out_where_it_taught(taught: dict[str, Any]) -> None:
    assert "<h2>Change per class</h2>" not in html(taught)
    assert "<h2>Change per class</h2>" in html({**taught, "teacher": "teacher"})


def test_two_classes_have_no_chart_of_pairs(taught: dict[str, Any]) -> None:
    for row in taught["artifacts"]:
        if row.get("against_teacher"):
            row["against_teacher"]["dark_knowledge"] = None
    assert "Classes that look alike" not in html(taught)
    assert "Classes that look alike" not in markdown(taught)


def test_an_old_report_has_none_of_it(report_data: dict[str, Any]) -> None:
    assert "against_teacher" not in str(report_data)
    for text in (html(report_data), markdown(report_data)):
        assert not re.search("student lost|Where it comes from|look alike|answers cost|The probe|per slice", text)


def test_a_language_model_has_agreement_and_no_empty_tables(taught: dict[str, Any]) -> None:
    tokens = {"teacher": "train", "unit": "token", "n": 900, "agreement": 0.87, "agreement_ci95": [0.85, 0.89]}
    for row in taught["artifacts"]:
        row.pop("costs", None)
        if row.get("against_teacher"):
            row["against_teacher"] = tokens
    page = html(taught)
    assert "87.00 % of tokens" in page and "[85.0, 89.0] %" in page
    assert "train, the teacher" not in page
    assert not re.search("per class, against|per slice, against|look alike|The probe|answers cost", page)
    assert "Calibration error" not in page
    assert "| baseline | 87.00 % [85.0, 89.0] % of tokens |\n" in re.sub(" +", " ", markdown(taught))


def test_a_teacher_that_only_wrote_is_not_passed_over_in_silence(report_data: dict[str, Any]) -> None:
    report_data["artifacts"][1]["against_teacher"] = unasked(["lessons"], wrote=True).model_dump(mode="json")
    for text in (html(report_data), markdown(report_data)):
        assert "What the student lost" in text
        assert "its teacher wrote what it learned from and gives no logits" in text
        assert not re.search("Against the torch model|None|Calibration error", text.partition("student lost")[2][:600])


def test_money_has_columns_only_where_somebody_was_paid(taught: dict[str, Any]) -> None:
    assert ">Paid</th>" not in html(taught)
    taught["artifacts"][1]["costs"][0].update(making_money=1.5, teacher_money_per_1000=7.5, break_even_by_money=200)
    page = html(taught)
    assert ">Paid</th>" in page and '<td class="n">200 answers</td>' in page
    assert "200 answers" in markdown(taught)


# -- Markdown


def test_tables_of_a_report_in_markdown(taught: dict[str, Any]) -> None:
    text = markdown(taught)
    lost = text.partition("## What the student lost")[2].partition("\n## ")[0]
    first = taught["artifacts"][1]["against_teacher"]
    assert f"{100 * first['agreement']:.2f} %" in lost
    correlation = f"{first['dark_knowledge']['rank_correlation']:.2f}".replace("-", "−")
    assert f"| {correlation} |" in lost
    assert "**ios_int4** was not compared: the file was not evaluated: no &lt;runtime&gt;" in lost
    assert "&lt;b&gt;over&lt;/b&gt; 10 \\| words & \\`code\\`" in text
    assert "| teacher | train | pretrained: big&lt;teacher&gt; (served by a, b) | cc-by-nc-4.0 (README.md) |" in re.sub(
        " +", " ", text
    )
    assert "| data | – | npz: fashion.npz | unknown |" in re.sub(" +", " ", text)
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_the_class_that_lost_most_comes_first(taught: dict[str, Any]) -> None:
    found = _teacher.class_table(Report.model_validate(taught))
    assert found is not None
    worst = [min(one.change or 0 for one in line.changes if one) for line in found.lines]
    assert worst == sorted(worst)
    assert max(max(line.bars) for line in found.lines) == 100.0


def test_a_student_with_pairs_of_its_own_shows_them(taught: dict[str, Any]) -> None:
    known = taught["artifacts"][1]["against_teacher"]["dark_knowledge"]
    own = {"classes": ["Coat", "Anorak"], "teacher": 0.01, "student": 0.4, "teacher_rank": 9, "student_rank": 1}
    known["student_top"] = [own, *known["student_top"]]
    lines = _teacher.pair_lines(Report.model_validate(taught))
    assert [line.teacher for line in lines[:6]] == sorted((line.teacher for line in lines[:6]), reverse=True)
    assert lines[6].name == "Coat / Anorak"
    assert lines[6].students == ((0.4, 1), None), "the other student's place is not known"
