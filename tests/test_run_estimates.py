"""A run whose devices are not at hand: a phone that can only be estimated, and a browser that is not installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeforge.core.errors import BudgetError
from edgeforge.estimators import Estimate
from edgeforge.estimators.fitted import Fitted, fits_of
from edgeforge.links import _browser
from edgeforge.pipeline import parse
from edgeforge.plan import Plan, build
from edgeforge.run import execute
from edgeforge.store import Store

PIPELINE: dict[str, Any] = {
    "name": "not-at-hand",
    "task": "image_classification",
    "model": {  # large enough to be beside the models that were measured, and nothing trains it
        "kind": "config",
        "architecture": "resnet",
        "embedding_size": 64,
        "hidden_sizes": [448],
        "depths": [2],
        "layer_type": "basic",
    },
    "targets": [{"name": "phone", "export": "onnx", "devices": ["galaxy_s24", "browser"]}],
    "budgets": {"latency_ms": 1000, "devices": {"galaxy_s24": {"latency_ms": 500}}},
}


class Silent:
    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setenv(_browser.VARIABLE, "/nowhere/chromium")
    return build(parse(yaml.safe_dump(PIPELINE).encode(), "test.yaml"))


def test_a_phone_not_at_hand_is_estimated_and_an_absent_browser_is_absent(plan: Plan, tmp_path: Path) -> None:
    said = [text for text in plan.warnings if text.startswith("phone: ")]
    assert said[0] == "phone: galaxy_s24 cannot be reached yet; its latency is estimated, not measured"
    assert said[1].startswith("phone: browser: this is no program that can be started (")
    assert said[1].endswith("; unless it was measured before, its rows will be absent")

    store, out = Store(tmp_path / "store"), tmp_path / "out"
    outcome = execute(plan, store, out, watcher=Silent())
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    phone = next(row for row in report["artifacts"] if row["name"] == "phone")
    assert phone["status"] == "shipped", phone["reason"]

    # report.json: the estimator's own answer about the shipped file, with its interval and its error.
    fits = {fit.unit: fit for fit in (fits_of("galaxy_s24") or pytest.fail()).fits if fit.precision == "float"}
    answers = Fitted().estimate("galaxy_s24", out / "artifacts" / "phone", "onnx")
    (direct,) = [item for item in answers if isinstance(item, Estimate)]
    (row,) = phone["measurements"]
    assert (row["device"], row["metric"], row["origin"], row["n"]) == ("galaxy_s24", "latency_ms", "estimated", 0)
    fit = fits[row["basis"]["unit"]]
    assert row["median"] == pytest.approx(direct.latency_ms)
    assert row["basis"]["interval80"] == pytest.approx([row["median"] * share for share in fit.interval80])
    assert (row["basis"]["error"], row["basis"]["rows"]) == (fit.error, fit.rows)
    assert row["ci95"] == [None, None]

    # An estimate keeps no limit, and what did not run has no row but a reason.
    limits = {(item["device"], item["limit"]): item for item in report["budgets"]}
    assert set(limits) == {("galaxy_s24", 500), ("browser", 1000)}
    assert limits["galaxy_s24", 500]["passed"] is False
    assert limits["galaxy_s24", 500]["reason"].startswith("only estimated, as ")
    assert isinstance(outcome.error, BudgetError)
    reasons = {item["device"]: item["reason"] for item in phone["conditions"]}
    assert reasons == {"galaxy_s24": None, "browser": "this is no program that can be started"}
    assert not any(store.has(step.key) for step in plan.steps if "benchmark" in step.name), "it is asked again"
    assert [item["title"] for item in report["devices"]] == ["Samsung Galaxy S24", "A web browser here"]

    number, percent = f"{row['median']:.3g}", f"{100 * fit.error:.1f} %"
    markdown, html = ((out / f"report.{kind}").read_text(encoding="utf-8") for kind in ("md", "html"))
    section = markdown.split("### Samsung Galaxy S24 (`galaxy_s24`): estimated")[1].split("###")[0]
    assert number in section and percent in section and "**Measured.**" not in section
    assert "### A web browser here (`browser`): absent" in markdown
    card = html.split("<h3>Samsung Galaxy S24</h3>")[1].split("</article>")[0]
    assert number in card and percent in card and 'class="group estimated"' in card
    assert 'class="group measured"' not in html
