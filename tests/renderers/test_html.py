# ruff: noqa: RUF001 (numbers are typeset with real minus and multiplication signs)
from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from edgeforge.core.report import Report
from edgeforge.renderers import write_all
from edgeforge.renderers._charts import Point, scatter
from edgeforge.renderers.html import MOST_CLASSES, Html, class_changes, flat
from edgeforge.renderers.json import Json

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Elements of a page, its text, and whether every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def charts(html: str) -> dict[str, ElementTree.Element]:
    """Every chart by its label, parsed as XML."""
    found = re.findall(r"<svg .*?</svg>", html, re.DOTALL)
    parsed = [ElementTree.fromstring(svg) for svg in found]
    return {svg.attrib["aria-label"]: svg for svg in parsed if "aria-label" in svg.attrib}


def test_one_file_that_asks_nobody_for_anything(report: Report) -> None:
    html = Html().render(report)
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "img", "object", "base", "form"), tag
        for name in ("src", "href", "action", "srcset"):
            assert attributes.get(name, "data:") == "data:" or attributes[name] == "data:,", (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    style = html.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and "default-src 'none'" in policy


def test_labels_with_html_in_them_are_text(report: Report) -> None:
    page = Page(Html().render(report))
    assert "<script>alert('shirt')</script>" in page.text
    assert "no translation for aten::<foo>" in page.text
    assert "Bag|tote" in page.text


@pytest.mark.parametrize("field", ["pipeline", "run", "task"])
def test_names_with_html_in_them_are_text(report_data: dict[str, Any], field: str) -> None:
    report_data[field] = '"><script>1</script>'
    report_data["artifacts"][1]["name"] = "<b onload=1>&amp;</b>"
    html = Html().render(Report.model_validate(report_data))
    Page(html)
    charts(html)
    assert "<script" not in html
    assert "<b onload" not in html


def test_what_was_won_and_lost_is_said(report: Report) -> None:
    text = Page(Html().render(report)).text
    for said in (
        "20.4× smaller", "431 kB", "6.36× faster", "−0.73 points", "92.81 %", "1.01×, no difference shown",
        "3 of 5 shipped", "1 of 5 quarantined", "1 of 5 absent", "2 of 4 budgets kept", "could not be measured here",
        "agrees with the float model on 61.2 % of samples", "3 of 21 convolutions stay in float32",
        "18 min 03 s", "avx512_vnni", "also running: python 37 %", "slower than float32 on this processor",
    ):  # fmt: skip
        assert said in text, said
    assert "None" not in text


def test_every_number_says_where_it_is_from(report_data: dict[str, Any]) -> None:
    assert "estimated" not in Page(Html().render(Report.model_validate(report_data))).text
    for row in report_data["artifacts"][1]["measurements"]:
        row["origin"] = "estimated"
    html = Html().render(Report.model_validate(report_data))
    text = Page(html.split("<h2>Devices</h2>")[0] + html.split("<h2>The chain, stage by stage</h2>")[1]).text
    assert text.count("estimated") == 1 + 1 + 1 + 4, "on its card, its point, in the legend, its rows"
    assert '<div class="group estimated">' in html
    hollow = [item for item in charts(html)["accuracy against latency"].iter() if "hollow" in item.get("class", "")]
    assert len(hollow) == 1


def test_charts_hold_every_file_with_numbers(report: Report) -> None:
    found = charts(Html().render(report))
    assert set(found) >= {
        "accuracy against size",
        "accuracy against latency",
        "latency samples",
        "the chain, stage by stage",
    }
    for name in ("accuracy against size", "accuracy against latency"):
        marks = [item.get("class") for item in found[name].iter() if item.get("class") in ("dot", "cross")]
        assert sorted(marks) == ["cross", "dot", "dot", "dot"], "baseline, two shipped, one quarantined"
    samples = [item for item in found["latency samples"].iter() if item.get("class") == "sample"]
    assert len(samples) == 4 * 40
    bars = [item for item in found["the chain, stage by stage"].iter() if item.get("class") == "bar"]
    assert len(bars) == 5 * 2
    heights = [float(item.attrib["height"]) for item in bars[:5]]
    assert heights[3] / heights[0] == pytest.approx(402 / 2170, abs=0.01)


def test_the_place_of_a_point_follows_from_its_numbers() -> None:
    points = [Point("a", 1.0, 0.5, 0), Point("b", 10.0, 0.6, 1), Point("c", 100.0, 0.9, 2)]
    svg = ElementTree.fromstring(scatter(points, metric="accuracy", title="t", x_axis=("x", str)))
    places = [(float(item.attrib["cx"]), float(item.attrib["cy"])) for item in svg.iter() if "cx" in item.attrib]
    (bx, by), (cx, cy) = places
    diamond = next(item.attrib["d"] for item in svg.iter() if item.tag == "path")
    ax, ay = map(float, diamond.removeprefix("M").split("l")[0].split())
    assert bx - ax == pytest.approx(cx - bx, abs=0.1), "equal factors are equal steps"
    assert (by - cy) / (ay + 7 - by) == pytest.approx(3, abs=0.05)


def test_names_do_not_cover_each_other() -> None:
    rows = [
        ("baseline", 8.8, 0.935),
        ("android_int8", 0.43, 0.928),
        ("android_int8_b", 0.44, 0.9281),
        ("c", 0.45, 0.928),
    ]
    points = [Point(name, x, y, number) for number, (name, x, y) in enumerate(rows)]
    svg = ElementTree.fromstring(scatter(points, metric="accuracy", title="t", x_axis=("x", str)))
    boxes = []
    for item in svg.iter():
        if item.get("class") == "name":
            assert item.text is not None
            length, x, y = 6.1 * len(item.text), float(item.attrib["x"]), float(item.attrib["y"])
            left = x - {"start": 0, "end": length, "middle": length / 2}[item.attrib["text-anchor"]]
            boxes.append((left, left + length, y - 9, y))
    for index, one in enumerate(boxes):
        for two in boxes[index + 1 :]:
            assert one[1] <= two[0] or two[1] <= one[0] or one[3] <= two[2] or two[3] <= one[2], (one, two)


def test_a_name_does_not_cover_its_own_interval() -> None:
    points = [Point("wide", 0.02, 0.5, 1, x_range=(0.015, 0.03)), Point("baseline", 0.0168, 0.9, 0)]
    svg = ElementTree.fromstring(scatter(points, metric="accuracy", title="t", x_axis=("x", str)))
    name = next(item for item in svg.iter() if item.get("class") == "name" and item.text == "wide")
    bar = next(item for item in svg.iter() if item.get("class") == "error")
    assert abs(float(name.attrib["y"]) - 4 - float(bar.attrib["y1"])) > 6


def test_a_quarantined_outlier_does_not_flatten_the_others() -> None:
    points = [Point("baseline", 8, 0.93, 0), Point("good", 1, 0.925, 1), Point("bad", 1, 0.1, 2, "quarantined")]
    svg = ElementTree.fromstring(scatter(points, metric="accuracy", title="t", x_axis=("x", str)))
    names = [item.text for item in svg.iter() if item.get("class") == "name"]
    assert names == ["baseline", "good", "bad ↓ 10.00 %"]


def test_classes_worst_first_and_only_of_what_is_shipped(report: Report, report_data: dict[str, Any]) -> None:
    found = class_changes(report)
    assert [row.name for row in found["columns"]] == ["android_int8", "web_dynamic"]
    worst = [min(bar[0] for bar in bars) for _, _, bars in found["rows"]]
    assert worst == sorted(worst)
    assert max(bar[1] for _, _, bars in found["rows"] for bar in bars) == 100
    many = {f"class {index}": 0.9 - index / 1000 for index in range(100)}
    report_data["artifacts"][0]["per_class_accuracy"] = dict.fromkeys(many, 0.9)
    report_data["artifacts"][1]["per_class_accuracy"] = many
    del report_data["artifacts"][2]["per_class_accuracy"]
    found = class_changes(Report.model_validate(report_data))
    assert len(found["rows"]) == MOST_CLASSES
    assert found["rows"][0][0] == "class 99"
    assert found["left_out"] == 60


def test_the_same_report_is_the_same_page(report: Report) -> None:
    assert Html().render(report) == Html().render(Report.model_validate_json(Json().render(report)))


def test_reports_with_gaps_render(report_data: dict[str, Any]) -> None:
    bare = {"name": "baseline", "status": "shipped", "format": "onnx"}
    for artifacts in ([], [bare], [bare, {**bare, "name": "t", "bytes": 5}]):
        data = {**report_data, "artifacts": artifacts, "stages": [], "budgets": [], "warnings": []}
        for row in (None, "x"):
            page = Page(Html().render(Report.model_validate({**data, "task": row, "seed": None, "baseline": row})))
            assert "None" not in page.text
    for row in report_data["artifacts"]:
        row |= {"metrics": {}, "per_class_accuracy": {}}
    page = Page(Html().render(Report.model_validate(report_data)))
    assert "not evaluated" in page.text


def test_nested_facts_become_lines() -> None:
    nested = {"bits": 4, "kept": {"head": "small"}, "names": ["a", "b"], "x": None, "on": True, "list": [{"y": 1.5}]}
    assert flat(nested) == [
        ("bits", "4"),
        ("kept.head", "small"),
        ("names", "a, b"),
        ("on", "yes"),
        ("list 1.y", "1.500"),
    ]


def test_layers_are_grouped_by_what_happened_to_them() -> None:
    kept = {"stem": "too small", "head": "sensitive", "neck": "too small"}
    assert flat({"kept_float": kept}) == [("kept float", "too small: stem, neck"), ("kept float", "sensitive: head")]


def test_all_formats_are_written_whole_or_not_at_all(report: Report, tmp_path: Path, monkeypatch) -> None:
    assert sorted(path.name for path in write_all(report, tmp_path)) == ["report.html", "report.json", "report.md"]
    before = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert len(before) == 3, "no partial files are left"

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_all(report.model_copy(update={"pipeline": "other"}), tmp_path)
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == before
