"""No target ships slower than what it came from without the report saying so, and the budget failing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from edgeforge.core.errors import BudgetError, ConfigurationError
from edgeforge.links import Link, Start, Timings, Workload
from edgeforge.pipeline import parse
from edgeforge.plan import Plan, build
from edgeforge.run import Outcome, execute
from edgeforge.stages import benchmark
from edgeforge.store import Store

MODEL = {
    "kind": "config",
    "architecture": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
}
TRAIN = {"kind": "train", "epochs": 2, "batch_size": 64, "learning_rate": 1e-2}
PRUNE = {"kind": "prune", "structure": {"kind": "channels", "ratio": 0.25}}
INT8 = {"kind": "int8_static", "samples": 32}


def planned(*targets: dict[str, Any], stages: tuple[Any, ...] = (TRAIN,), **more: Any) -> Plan:
    pipeline = {
        "name": "tiny",
        "task": "image_classification",
        "model": MODEL,
        "stages": list(stages),
        "targets": list(targets),
        **more,
    }
    return build(parse(yaml.safe_dump(pipeline).encode(), "test.yaml"))


def beside(plan: Plan, row: str) -> dict[str, str]:
    inputs = dict(plan.step(f"{row}.benchmark.host_cpu").inputs)
    del inputs["model"]
    return inputs


# -- what a file is measured beside


@pytest.mark.parametrize(
    ("stages", "smaller"),
    [
        ([], False),
        ([{"kind": "finetune", "epochs": 1}], False),
        ([{"kind": "mutual", "epochs": 1}], True),
        ([{"kind": "exits", "after": [0], "use": 0, "epochs": 1}], True),
        ([{"kind": "distill", "epochs": 1}], True),
    ],
)
def test_what_makes_a_model_smaller_should_be_no_slower_than_the_baseline(stages: list[Any], smaller: bool) -> None:
    source = {
        "name": "chain",
        "task": {"kind": "image_classification", "data": "sklearn_digits", "image_size": 16},
        "model": {"kind": "config", "architecture": "resnet"},
        "stages": [{"kind": "train", "epochs": 1}, *stages],
    }
    assert build(parse(json.dumps(source).encode(), "chain.yaml")).compresses is smaller


def test_a_file_of_the_baselines_model_came_from_the_baselines_file() -> None:
    plan = planned({"name": "t", "quantize": INT8, "export": "onnx"})
    assert plan.step("t.export").key == plan.step("baseline.export").key
    assert beside(plan, "t") == {"baseline": "baseline.export"}


def test_the_unquantized_file_of_a_pruned_model_takes_part() -> None:
    plan = planned({"name": "t", "quantize": INT8, "export": "onnx"}, stages=(TRAIN, PRUNE))
    assert beside(plan, "t") == {"baseline": "baseline.export", "parent": "t.export"}


def test_it_is_written_where_a_quantizer_of_models_left_none_once_for_all() -> None:
    targets = [{"name": name, "quantize": name, "export": "onnx"} for name in ("int4_weights", "int8_weights")]
    plan = planned(*targets, stages=(TRAIN, PRUNE))
    parent = "int4_weights.unquantized"
    assert plan.step(parent).inputs == {"model": "prune"}
    assert [beside(plan, target["name"])["parent"] for target in targets] == [parent, parent]


@pytest.mark.parametrize(
    "target", [{"quantize": INT8, "devices": []}, {"quantize": INT8, "devices": ["pixel_8"]}, {"devices": []}]
)
def test_nothing_is_written_for_measurements_that_are_not_made(target: dict[str, Any]) -> None:
    plan = planned({"name": "t", "export": "onnx", **target}, stages=(TRAIN, PRUNE))
    assert not any("parent" in step.inputs or step.name.endswith("unquantized") for step in plan.steps)


def test_a_fallback_is_for_what_is_quantized() -> None:
    with pytest.raises(ConfigurationError, match="this one is not"):
        planned({"name": "t", "export": "onnx", "fallback": "float"})


# -- what the report says of it


class Clock(Link):
    """Says at once how long each subject takes (ms), by its role."""

    kind: str = "clock"
    cost: dict[str, float]

    def unavailable(self, runtime: str) -> str | None:
        return None

    def measure(self, workload: Workload, progress: Any) -> Timings:
        chance = np.random.default_rng(0)
        start = Start(load_ms=1, first_inference_ms=1, peak_rss_mb=1)
        return Timings(
            starts={name: (start,) * count for name, count in workload.starts.items()},
            latency_ms={name: tuple(self.cost[name] * chance.lognormal(0, 0.02, 40)) for name in workload.subjects},
            calls_per_sample=dict.fromkeys(workload.subjects, 1),
            waiting_share=None,
            conditions={},
        )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and files are made once; what is measured is not kept."""
    return tmp_path_factory.mktemp("parents") / "store"


class Quiet:
    def started(self, *_: Any) -> None: ...

    def update(self, *_: Any) -> None: ...

    def finished(self, *_: Any) -> None: ...

    def warn(self, message: str) -> None: ...


@pytest.fixture
def measured(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a plan on a device that is as fast as is said."""

    def run(plan: Plan, **cost: float) -> tuple[Outcome, Path]:
        clock = Clock(cost={"floor": 0.001, **cost})
        monkeypatch.setattr(benchmark, "link_of", lambda kind, connection: clock)
        again = frozenset(step.name for step in plan.steps if step.stage.kind == "benchmark")
        return execute(plan, Store(store), tmp_path / "out", watcher=Quiet(), rebuild=again), tmp_path / "out"

    return run


def quantized(**more: Any) -> Plan:
    target = {"name": "t", "quantize": INT8, "export": "onnx", **more.pop("target", {})}
    return planned(target, stages=(TRAIN, PRUNE), **more)


def row_of(out: Path) -> dict[str, Any]:
    rows = json.loads((out / "report.json").read_text(encoding="utf-8"))["artifacts"]
    return next(row for row in rows if row["name"] == "t")


def test_faster_than_the_baseline_and_slower_than_its_own_unquantized_file_fails(measured: Any) -> None:
    outcome, out = measured(quantized(), model=1.0, parent=0.8, baseline=2.0)
    assert isinstance(outcome.error, BudgetError)
    assert "slower than its unquantized file; `fallback: float` would ship" in outcome.error.what
    (budget,) = outcome.report.budgets
    assert (budget.metric, budget.device, budget.passed) == ("slower_than_parent", "host_cpu", False)
    assert budget.value == pytest.approx(0.8, rel=0.02)
    verdicts = {item["parent"]: item["verdict"] for item in row_of(out)["parents"]}
    assert verdicts == {"its unquantized file": "slower", "the baseline": "faster"}
    for name in ("report.md", "report.html"):
        text = (out / name).read_text(encoding="utf-8")
        assert "than its unquantized file" in text
        assert "1.25\u00d7 slower" in text
        assert "slower than parent" in text, "the budget"


def test_faster_than_its_unquantized_file_and_slower_than_the_baseline_fails(measured: Any) -> None:
    """A pruned model of odd sizes."""
    outcome, _ = measured(quantized(), model=1.0, parent=1.5, baseline=0.9)
    assert isinstance(outcome.error, BudgetError)
    assert "slower than the baseline" in outcome.error.what


@pytest.mark.parametrize("parent", [1.0, 1.3])
def test_what_is_as_fast_or_faster_passes(measured: Any, parent: float) -> None:
    outcome, _ = measured(quantized(), model=1.0, parent=parent, baseline=2.0)
    assert outcome.error is None
    assert outcome.report.budgets == ()


def test_the_pipeline_may_allow_it_and_the_report_says_so_all_the_same(measured: Any) -> None:
    plan = quantized(budgets={"slower_than_parent": "allow"})
    outcome, out = measured(plan, model=1.0, parent=0.8, baseline=2.0)
    assert outcome.error is None
    (budget,) = outcome.report.budgets
    assert budget.passed and budget.reason == "slower than its unquantized file, which the pipeline allows"
    assert "than its unquantized file" in (out / "report.md").read_text(encoding="utf-8")


def test_a_pruned_target_that_is_not_quantized_came_from_the_baseline(measured: Any) -> None:
    plan = planned({"name": "t", "export": "onnx"}, stages=(TRAIN, PRUNE))
    outcome, out = measured(plan, model=1.0, baseline=0.8)
    assert isinstance(outcome.error, BudgetError)
    assert [item["parent"] for item in row_of(out)["parents"]] == ["the baseline"]


def test_what_nothing_made_smaller_has_no_parent(measured: Any) -> None:
    outcome, out = measured(planned({"name": "t", "export": "onnx"}), model=1.0, baseline=0.8)
    assert outcome.error is None
    assert row_of(out)["parents"] == []


def test_of_the_baselines_model_the_baselines_file_is_the_unquantized_one(measured: Any) -> None:
    plan = planned({"name": "t", "quantize": INT8, "export": "onnx"})
    outcome, out = measured(plan, model=1.0, baseline=0.8)
    assert isinstance(outcome.error, BudgetError)
    assert [item["parent"] for item in row_of(out)["parents"]] == ["its unquantized file"]


# -- shipping the unquantized file instead


def test_a_fallback_ships_the_unquantized_file_where_the_quantized_one_is_slower(measured: Any, store: Path) -> None:
    plan = quantized(target={"fallback": "float"})
    outcome, out = measured(plan, model=1.0, parent=0.8, baseline=2.0)
    assert outcome.error is None
    row = row_of(out)
    assert (row["status"], row["path"], row["quantization"]) == ("shipped", "artifacts/t/model.onnx", {})
    assert row["reason"].startswith("the unquantized file: quantized, it takes 1.25 times as long on host_cpu")
    shipped = (out / "artifacts" / "t" / "model.onnx").read_bytes()
    assert shipped == (store / "sealed" / plan.step("t.export").key / "model.onnx").read_bytes()
    assert row["bytes"] == len(shipped)
    assert row["parity"]["passed"] is True and row["metrics"]["accuracy"] is not None
    assert row["golden"]["path"] == "golden/t.npz" and (out / "golden" / "t.npz").is_file()
    assert not (out / "artifacts" / "t.float").exists()
    assert "quantized, it takes" in (out / "report.md").read_text(encoding="utf-8")


def test_a_fallback_changes_nothing_where_the_quantized_file_is_not_slower(measured: Any) -> None:
    outcome, out = measured(quantized(target={"fallback": "float"}), model=1.0, parent=1.5, baseline=2.0)
    assert outcome.error is None
    row = row_of(out)
    assert (row["quantization"]["kind"], row["reason"]) == ("int8_static", None)
    assert row["lineage"]["steps"][-1]["step"] == "t.quantize"
