# ruff: noqa: RUF001 (numbers are typeset with real minus and multiplication signs)
"""Measured, emulated and estimated numbers, device by device, in report.md and report.html."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from edgeforge.core.report import Report
from edgeforge.renderers import _device_chart, _devices
from edgeforge.renderers.html import Html
from edgeforge.renderers.markdown import Markdown


def chart(html: str, label: str) -> ElementTree.Element:
    parsed = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg .*?</svg>", html, re.DOTALL)]
    return next(svg for svg in parsed if svg.attrib.get("aria-label") == label)


def articles(html: str) -> dict[str, str]:
    """The text of every device's card, by its title."""
    found = {}
    for text in re.findall(r'<article class="card device.*?</article>', html, re.DOTALL):
        title = re.search(r"<h3>(.*?)</h3>", text)
        assert title is not None
        found[title.group(1)] = " ".join(re.sub(r"<[^>]+>", " ", text).split())
    return {title: text.replace("\u00a0", " ") for title, text in found.items()}


def section(text: str, title: str) -> str:
    return text.split(f"### {title}")[1].split("\n##")[0]


def test_every_device_has_its_place_by_how_its_numbers_are_known(device_report: Report) -> None:
    found = _devices.devices(device_report)
    assert [(device.name, device.origins) for device in found] == [
        ("host_cpu", ("measured",)),
        ("browser", ("measured",)),
        ("emulated_a76", ("emulated",)),
        ("galaxy_s24", ("estimated",)),
        ("pixel_8", ()),
    ]
    assert found[0].about == "AMD EPYC, measured directly"
    assert found[-1].about == "Tensor <G3>, over adb"


def test_no_number_of_one_origin_stands_among_those_of_another(device_data: dict[str, Any]) -> None:
    for row in device_data["artifacts"][1]["measurements"]:
        if row["origin"] == "estimated":
            row["device"] = "host_cpu"
    device = next(item for item in _devices.devices(Report.model_validate(device_data)) if item.name == "host_cpu")
    assert device.origins == ("measured", "estimated")
    measured, estimated = device.groups
    assert [row.name for row, _ in measured.lines] == ["baseline", "android_int8", "web_dynamic", "android_entropy"]
    assert [cells[-1] for _, cells in estimated.lines] == ["ONNX Runtime on the NPU", "ONNX Runtime on the CPU"]
    assert not {cells[0] for _, cells in estimated.lines} & {cells[0] for _, cells in measured.lines}


def test_an_estimate_has_its_interval_its_error_and_what_it_rests_on(device_report: Report) -> None:
    markdown = Markdown().render(device_report)
    phone = section(markdown, "Samsung Galaxy S24 (`galaxy_s24`): estimated")
    for said in ("**Estimated.**", "0.410", "[0.312, 0.521]", "8.4 %", "15 models", "w8a8", "Snapdragon 8 Gen 3"):
        assert said in phone, said
    assert "- No estimate of baseline: there are no measurements of float models" in phone
    card = articles(Html().render(device_report))["Samsung Galaxy S24"]
    for said in ("Estimated", "0.410", "[0.312, 0.521]", "8.4 %", "15 models", "No estimate of baseline: there"):
        assert said in card, said
    assert "Measured" not in card


def test_an_emulated_processor_has_counts_and_no_times(device_report: Report) -> None:
    for text in (
        section(Markdown().render(device_report), "Cortex-A76, emulated (`emulated_a76`): emulated"),
        articles(Html().render(device_report))["Cortex-A76, emulated"],
    ):
        assert "16.4 M" in text and "2.60 M" in text
        assert "6.31× fewer" in text, "16.4 / 2.6"
        assert "dot product" in text.lower() and "instructions dot product" not in text.lower()
        assert " ms" not in text


def test_a_device_that_did_not_answer_is_listed_with_its_reason_and_no_row(device_report: Report) -> None:
    phone = section(Markdown().render(device_report), "Google Pixel 8 (`pixel_8`): absent")
    assert "- No numbers of baseline, android_int8: no Android device is connected" in phone
    assert "|" not in phone
    html = Html().render(device_report)
    card = articles(html)["Google Pixel 8"]
    assert "absent" in card and "baseline, android_int8: no Android device is connected" in card
    assert "Tensor <G3>" not in html and "Tensor &lt;G3&gt;" in html


def test_limits_stand_with_the_device_they_are_on(device_report: Report) -> None:
    markdown, cards = Markdown().render(device_report), articles(Html().render(device_report))
    kept = section(markdown, "This machine's CPU (`host_cpu`): measured")
    assert "- Budget ✓ kept: android_int8, latency 0.0342 ms, limit ≤ 0.0500 ms" in kept
    missed = section(markdown, "Google Pixel 8 (`pixel_8`): absent")
    assert "- Budget ✗ missed: android_int8, latency –, limit ≤ 0.0500 ms: could not be measured here" in missed
    assert "kept android_int8: latency 0.0342 ms" in cards["This machine&#39;s CPU"]
    assert "missed android_int8: latency –" in cards["Google Pixel 8"]
    assert "missed" not in cards["A web browser here"] and "kept" not in cards["A web browser here"]


def test_a_limit_that_was_allowed_to_be_unmeasured_is_not_called_kept(device_report: Report) -> None:
    rows = [row.model_copy(update={"passed": True}) if row.value is None else row for row in device_report.budgets]
    report = device_report.model_copy(update={"budgets": tuple(rows)})
    phone = section(Markdown().render(report), "Google Pixel 8 (`pixel_8`): absent")
    assert "- Budget – not measured, which is allowed: android_int8, latency –" in phone and "kept" not in phone
    html = Html().render(report)
    card = articles(html)["Google Pixel 8"]
    assert "not measured android_int8: latency –" in card and "kept" not in card
    known = [row for row in rows if row.value is not None]
    said = f"{sum(row.passed for row in known)} of {len(rows)} budgets kept, {len(rows) - len(known)} not measured"
    assert said in " ".join(html.split())


def test_how_long_a_file_kept_it_up_and_what_the_device_answered(device_report: Report) -> None:
    markdown, html = Markdown().render(device_report), Html().render(device_report)
    cards = articles(html)
    for text in (section(markdown, "This machine's CPU (`host_cpu`): measured"), cards["This machine&#39;s CPU"]):
        for said in ("120 s", "0.0300 ms", "0.0420 ms", "1.40× [1.37, 1.44]", "slows down"):
            assert said in text, said
    for text in (
        section(markdown, "Cortex-A76, emulated (`emulated_a76`): emulated"),
        cards["Cortex-A76, emulated"],
    ):
        for said in ("300", "accuracy 92.67 %", "99.67 %", "0.0313"):
            assert said in text, said
    assert "ms from 0.0300 to 0.0419" in html, "the curve"


def test_a_busy_device_is_said_beside_its_numbers(device_report: Report) -> None:
    assert "the device was busy: 1.3 cores" in articles(Html().render(device_report))["A web browser here"]
    assert "the device was busy: 1.3 cores" in section(Markdown().render(device_report), "A web browser here")


def test_the_chart_has_a_lane_for_each_device_and_hollow_marks_for_what_was_not_measured(
    device_report: Report,
) -> None:
    svg = chart(Html().render(device_report), "latency, device by device")
    names = [item.text for item in svg.iter() if item.get("class") == "name"]
    assert names == ["This machine's CPU", "A web browser here", "Samsung Galaxy S24", "Samsung Galaxy S24"]
    details = [item.text for item in svg.iter() if (item.get("class") or "").startswith("detail")]
    assert details == ["measured", "measured", "estimated, NPU", "estimated, CPU"]
    marks = [item.get("class") for item in svg.iter() if (item.get("class") or "") in ("dot", "dot hollow", "cross")]
    assert marks.count("dot hollow") == 2 and marks.count("dot") == 3 + 2 and marks.count("cross") == 1
    assert len([item for item in svg.iter() if item.get("class") == "lane"]) == 2, "a ground of their own"
    counts = chart(Html().render(device_report), "instructions, processor by processor")
    assert [item.text for item in counts.iter() if item.get("class") == "name"] == ["Cortex-A76, emulated"]


def test_the_place_of_a_mark_and_of_its_interval_follow_from_its_numbers() -> None:
    marks = tuple(
        _device_chart.Mark(str(value), number, "shipped", value, 0.5 * value, 2 * value)
        for number, value in ((1, 1.0), (2, 10.0), (3, 100.0))
    )
    lanes = [_device_chart.Lane("d", "estimated", "estimated", marks)]
    svg = ElementTree.fromstring(_device_chart.draw(lanes, title="t", axis=("ms", str, str)))
    one, ten, hundred = (float(item.attrib["cx"]) for item in svg.iter() if "cx" in item.attrib)
    assert ten - one == pytest.approx(hundred - ten, abs=0.1), "equal factors are equal steps"
    bars = [item.attrib for item in svg.iter() if item.get("class") == "error"]
    widths = [float(bar["x2"]) - float(bar["x1"]) for bar in bars]
    decade = ten - one
    assert widths == pytest.approx([decade * 0.60206] * 3, abs=0.1), "log10(4)"


def test_one_device_needs_no_chart_over_devices(report: Report) -> None:
    assert 'aria-label="latency, device by device"' not in Html().render(report)


def test_files_are_compared_on_one_device(device_report: Report, device_data: dict[str, Any]) -> None:
    """Latencies of two devices on one axis would be a comparison of devices, in the colours of files."""
    assert _devices.compared_on(device_report) == "host_cpu"
    svg = chart(Html().render(device_report), "accuracy against latency")
    titles = [item.text for item in svg.iter() if item.get("class") == "title"]
    assert titles == ["latency on host_cpu, ms per call"]
    only = {"name": "only", "status": "shipped", "format": "onnx", "measurements": []}
    assert _devices.compared_on(Report.model_validate({**device_data, "artifacts": [only]})) is None


def test_a_report_from_before_devices_were_listed_still_shows_them(device_data: dict[str, Any]) -> None:
    del device_data["devices"]
    for row in device_data["artifacts"]:
        for item in row.get("measurements", ()):
            item.pop("basis", None)
    report = Report.model_validate(device_data)
    assert {device.title for device in _devices.devices(report)} == {
        "host_cpu", "browser", "emulated_a76", "galaxy_s24", "pixel_8",
    }  # fmt: skip
    assert "### galaxy_s24: estimated" in Markdown().render(report)
    assert "None" not in " ".join(articles(Html().render(report)).values())
