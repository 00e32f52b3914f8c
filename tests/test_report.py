from __future__ import annotations

import datetime
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeforge.budgets import judge
from edgeforge.comparison import paired_interval
from edgeforge.core.artifact import Artifact
from edgeforge.core.report import ArtifactRow, Report, StepResult
from edgeforge.core.stage import Stage
from edgeforge.deltas import compared_texts
from edgeforge.exporters.onnx import Onnx
from edgeforge.models.config import Config
from edgeforge.pipeline import Budgets, Pipeline, Target
from edgeforge.plan import Plan, Step
from edgeforge.quantizers.int8_static import Int8Static
from edgeforge.report import collect, file_step, folder_of, status_of
from edgeforge.stages.benchmark import Benchmark
from edgeforge.stages.evaluate import Evaluate
from edgeforge.stages.export import Export
from edgeforge.stages.initialize import Initialize
from edgeforge.stages.quantize import Quantize
from edgeforge.stages.train import Train
from edgeforge.stages.verify import Verify
from edgeforge.store import Store
from edgeforge.tasks.image_classification import ImageClassification

LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
BEFORE = np.array([0, 1, 2, 0, 1, 2, 0, 1, 0, 1])  # 8 of 10 right
AFTER = np.array([0, 1, 2, 0, 1, 0, 0, 1, 2, 1])  # one gained, one lost


def latency(median: float) -> dict[str, Any]:
    return {
        "device": "host_cpu", "runtime": "onnxruntime", "metric": "latency_ms", "origin": "measured",
        "n": 40, "median": median, "p90": median, "ci95": [median, median],
    }  # fmt: skip


class Run:
    """A plan of one target, and results that a test can change before they are collected."""

    def __init__(self, root: Path, budgets: Budgets) -> None:
        model = Config.model_validate({"kind": "config", "architecture": {"kind": "resnet"}})
        pipeline = Pipeline(
            name="digits",
            task=ImageClassification(),
            model=model,
            targets=(Target(name="phone", export=Onnx(), devices=("host_cpu", "pixel_8")),),
            budgets=budgets,
        )
        self.plan = Plan(pipeline, baseline="train", chain=["model", "train"])
        self.plan.targets["phone"] = pipeline.targets[0]
        self.plan.warnings.append("phone: pixel_8 cannot be reached yet")
        self.store = Store(root / "store")
        self.results: dict[str, StepResult] = {}
        self.chain(model)
        self.row("baseline", "train", BEFORE, size=8000, speed=(1.0, None))
        self.row("phone", "train", AFTER, size=1000, speed=(0.25, 4.0))

    def chain(self, model: Config) -> None:
        self.add("model", Initialize(model=model), {}, facts={"params": 100, "macs": 2000})
        facts = {"params": 100, "macs": 2000, "history": {"loss": [2.0, float("nan")]}}
        self.add("train", Train(epochs=1), {"model": "model"}, facts=facts)
        self.add("train.evaluate", Evaluate(), {"model": "train"}, facts=self.metrics(BEFORE))

    def row(self, row: str, model: str, predicted: np.ndarray, *, size: int, speed: tuple[float, float | None]) -> None:
        files = {"model.onnx": b"m" * size, "labels.json": b"[]"}
        self.add(f"{row}.export", Export(exporter=Onnx()), {"model": model}, row, files=files, facts={"bytes": size})
        file = f"{row}.export"
        if row != "baseline":
            facts = {"quantization": {"scheme": "static", "bits": 8, "coverage_percent": 99.0, "bytes": size}}
            file = f"{row}.quantize"
            self.add(file, Quantize(quantizer=Int8Static()), {"model": f"{row}.export"}, row, files=files, facts=facts)
        checks = [{"name": "opens", "passed": True, "detail": ""}]
        parity = {"reference": "torch", "passed": True, "max_abs_error": 0.5, "cosine": float("nan")}
        verified = {"passed": True, "reason": None, "parity": parity, "checks": checks, "fidelity": None}
        self.add(f"{row}.verify", Verify(), {"file": file, "model": model}, row, facts=verified)
        logits = np.eye(3, dtype=np.float32)[predicted]
        arrays = {"logits.npy": logits, "labels.npy": LABELS}
        self.add(f"{row}.evaluate", Evaluate(), {"model": file}, row, facts=self.metrics(predicted), arrays=arrays)
        comparison = None
        if speed[1] is not None:
            comparison = {
                "device": "host_cpu", "runtime": "onnxruntime", "origin": "measured", "n": 40,
                "ratio": speed[1], "ci95": [speed[1] - 0.1, speed[1] + 0.1], "verdict": "faster",
            }  # fmt: skip
        bench = {"measurements": [latency(speed[0])], "latency": comparison, "threads": 1, "conditions": {"seconds": 3}}
        self.add(f"{row}.benchmark.host_cpu", Benchmark(device="host_cpu"), {"model": file}, row, facts=bench)

    def metrics(self, predicted: np.ndarray) -> dict[str, Any]:
        right = predicted == LABELS
        per_class = {str(label): float(right[label == LABELS].mean()) for label in range(3)}
        found = {"accuracy": float(right.mean()), "expected_calibration_error": 0.1, "per_class_accuracy": per_class}
        return {"runtime": "onnxruntime", "metrics": found, "reason": None}

    def add(
        self,
        name: str,
        stage: Stage,
        inputs: dict[str, str],
        row: str = "chain",
        *,
        facts: dict[str, Any],
        files: dict[str, bytes] | None = None,
        arrays: dict[str, np.ndarray] | None = None,
    ) -> None:
        key = hashlib.sha256(name.encode()).hexdigest()
        self.plan.steps.append(Step(name, stage, inputs, key, row))
        draft = self.store.draft(key, stage.kind, parents={}, recipe={})
        for path, content in (files or {}).items():
            (draft.path / path).parent.mkdir(parents=True, exist_ok=True)
            (draft.path / path).write_bytes(content)
        for path, array in (arrays or {}).items():
            np.save(draft.path / path, array)
        plain = json.loads(json.dumps(facts).replace("NaN", "null"))
        artifact = self.store.seal(draft, stage.makes_format(), plain, 12.5)
        self.results[name] = StepResult(artifact, cached=name == "model", seconds=12.5)

    def fail(self, name: str, error: str) -> None:
        """This step failed, and what needs it was not made."""
        self.results[name] = StepResult(None, error=error)
        for step in self.plan.steps:
            if name in step.inputs.values() and self.results[step.name].artifact is not None:
                self.fail(step.name, f"{name} failed")

    def verdict(self, row: str, **facts: Any) -> None:
        """Verification said this."""
        artifact = self.results[f"{row}.verify"].artifact
        assert artifact is not None
        values = {**vars(artifact), "facts": {**artifact.facts, **facts}}
        self.results[f"{row}.verify"] = StepResult(Artifact(**values))

    def collect(self) -> Report:
        return collect(
            self.plan, self.results, created=datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
        )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, Budgets(accuracy_drop=0.0, size_ratio=8, latency_ms=0.5, latency_ratio=4))


def phone(report: Report) -> ArtifactRow:
    row = report.artifact("phone")
    assert row is not None
    return row


def test_a_whole_run(run: Run) -> None:
    report = run.collect()
    assert report.run == "digits-20260102T030405Z"
    assert report.created == "2026-01-02T03:04:05+00:00"
    assert [row.name for row in report.artifacts] == ["baseline", "phone"]
    assert report.warnings == ("phone: pixel_8 cannot be reached yet",)
    model, train = report.stages
    assert (model.cached, train.cached, train.seconds) == (True, False, 12.5)
    assert model.facts.metrics == {}
    assert train.facts.metrics == {"accuracy": 0.8, "expected_calibration_error": 0.1}
    assert train.facts.per_class_accuracy == {"0": 0.75, "1": 1.0, "2": pytest.approx(2 / 3)}
    assert train.facts.params == 100
    row = phone(report)
    assert (row.status, row.reason, row.format) == ("shipped", None, "onnx")
    assert row.metrics == {"accuracy": 0.8, "expected_calibration_error": 0.1}, "scalars only"
    assert row.deltas == {
        "size_ratio": 8.0,
        "latency_ratio": 4.0,
        "accuracy": 0.0,
        "expected_calibration_error": 0.0,
    }
    assert row.quantization == {"kind": "int8_static", "scheme": "static", "bits": 8}
    assert row.coverage_percent == 99.0
    assert row.parity.passed is True
    assert row.checks[0].name == "opens"
    assert [step["step"] for step in row.lineage["steps"]] == ["model", "train", "phone.export", "phone.quantize"]
    assert {item.device: item.reason for item in row.conditions} == {
        "host_cpu": None,
        "pixel_8": "this device cannot be reached from here yet",
    }
    assert Report.model_validate_json(report.to_json()) == report


def test_the_exporters_coverage_is_that_of_the_file(run: Run) -> None:
    """Core ML skips layers that the quantizer had covered."""
    assert phone(run.collect()).coverage_percent == 99.0
    artifact = run.results["phone.quantize"].artifact
    assert artifact is not None
    facts = {"coverage_percent": 61.0, **artifact.facts}
    run.results["phone.quantize"] = StepResult(Artifact(**{**vars(artifact), "facts": facts}))
    assert phone(run.collect()).coverage_percent == 61.0


def test_paths_bytes_and_digests_are_of_what_is_loaded(run: Run) -> None:
    row = phone(run.collect())
    assert row.path == "artifacts/phone/model.onnx"
    assert row.bytes == 1000
    assert row.sha256 == hashlib.sha256(b"m" * 1000).hexdigest()
    assert row.companions == {"labels.json": 2}


def test_a_folder_is_counted_as_a_whole(run: Run, tmp_path: Path) -> None:
    files = {"model.mlpackage/Manifest.json": b"{}", "model.mlpackage/Data/weight.bin": b"wwww", "labels.json": b"[]"}
    run.plan.steps = [step for step in run.plan.steps if step.name != "phone.quantize"]
    run.add("phone.quantize", run.plan.steps[0].stage, {"model": "phone.export"}, "phone", facts={}, files=files)
    row = phone(run.collect())
    lines = [
        f"Data/weight.bin {hashlib.sha256(b'wwww').hexdigest()}\n",
        f"Manifest.json {hashlib.sha256(b'{}').hexdigest()}\n",
    ]
    assert (row.path, row.bytes) == ("artifacts/phone/model.mlpackage", 6)
    assert row.sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert row.companions == {"labels.json": 2}


def test_several_files_that_are_loaded_together_all_count(run: Run) -> None:
    files = {"model.onnx": b"graph", "model.onnx.data": b"weights", "labels.json": b"[]"}
    run.plan.steps = [step for step in run.plan.steps if step.name != "phone.quantize"]
    run.add("phone.quantize", run.plan.steps[0].stage, {"model": "phone.export"}, "phone", facts={}, files=files)
    row = phone(run.collect())
    lines = [f"{name} {hashlib.sha256(files[name]).hexdigest()}\n" for name in ("model.onnx", "model.onnx.data")]
    assert (row.path, row.bytes) == ("artifacts/phone", 12)
    assert row.sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert row.companions == {"labels.json": 2}


def test_predictions_are_compared_sample_by_sample(run: Run) -> None:
    comparison = phone(run.collect()).comparison
    assert comparison is not None
    assert comparison.n == 10
    assert comparison.agreement == 0.8, "equal accuracy hides that two of ten predictions changed"
    assert comparison.difference == 0.0
    assert comparison.ci95 == pytest.approx(paired_interval(1, 1, 10))
    assert run.collect().artifacts[0].comparison is None


def test_an_interval_of_accuracies_does_not_stand_beside_another_metric(run: Run) -> None:
    for name in ("phone.evaluate", "baseline.evaluate"):
        artifact = run.results[name].artifact
        assert artifact is not None
        artifact.facts["metrics"] = {"macro_f1": 0.7, **artifact.facts["metrics"]}  # type: ignore[index]
    comparison = phone(run.collect()).comparison
    assert comparison is not None
    assert (comparison.agreement, comparison.difference, comparison.ci95) == (0.8, None, None)


def test_texts_are_compared_token_by_token(tmp_path: Path) -> None:
    def evaluated(name: str, nll: list[list[float]], likeliest: list[list[int]], **more: Any) -> Artifact:
        folder = tmp_path / name
        folder.mkdir()
        numbers = np.array(nll, dtype=np.float32)
        arrays = {
            "nll": numbers,
            "scored": ~np.isnan(numbers),
            "likeliest": np.array(likeliest, dtype=np.int32),
            **more,
        }
        for array, values in arrays.items():
            np.save(folder / f"{array}.npy", values)
        return Artifact(name, "", "", folder, "", {f"{array}.npy": "" for array in arrays}, {}, {})

    nan, wrong = float("nan"), np.zeros((2, 3), dtype=bool)  # neither ever says what the reference does
    before = evaluated("before", [[1, 2, nan], [1, 1, nan]], [[5, 6, 0], [7, 8, 0]], top1=wrong)
    after = evaluated("after", [[1, 3, nan], [1, 2, nan]], [[5, 9, 1], [7, 3, 1]], top1=wrong)
    found = compared_texts(after, before)
    assert found is not None
    assert (found.n, found.agreement) == (4, 0.5)
    assert found.difference == pytest.approx(math.exp(7 / 4) - math.exp(5 / 4))
    other_ids = evaluated("cut", [[1, 3, nan], [1, 2, nan]], [[5, 9, 1], [7, 3, 1]])
    assert compared_texts(other_ids, before) is None


def test_a_file_that_failed_is_quarantined(run: Run) -> None:
    run.verdict("phone", passed=False, reason="parity with torch: off by 3.1")
    for name in ("phone.evaluate", "phone.benchmark.host_cpu"):
        run.results[name] = StepResult(None, error="the file did not pass verification")
    report = run.collect()
    row = phone(report)
    assert (row.status, row.reason) == ("quarantined", "parity with torch: off by 3.1")
    assert row.path == "quarantine/phone/model.onnx"
    assert row.deltas["size_ratio"] == 8.0
    assert row.deltas["latency_ratio"] is None
    assert row.comparison is None
    assert [item.passed for item in report.budgets if item.metric == "accuracy_drop"] == [False]
    assert row.conditions[0].reason == "the file did not pass verification"


def test_a_file_whose_verification_crashed_is_not_shipped(run: Run) -> None:
    run.results["phone.verify"] = StepResult(None, error="RuntimeError: boom")
    assert status_of(run.plan, run.results, "phone") == ("quarantined", "RuntimeError: boom")


def test_a_file_that_was_never_made_is_absent_with_the_first_cause(run: Run) -> None:
    run.fail("phone.export", "no translation for aten::foo")
    report = run.collect()
    row = phone(report)
    assert (row.status, row.path, row.bytes) == ("absent", None, None)
    assert row.reason == "phone.export: no translation for aten::foo"
    assert row.format == "onnx"
    assert all(not item.passed for item in report.budgets)
    baseline = report.artifact("baseline")
    assert baseline is not None and baseline.status == "shipped"


def test_a_run_that_ended_early_can_still_be_reported(run: Run) -> None:
    run.results = {name: run.results[name] for name in ("model",)}
    report = run.collect()
    assert [row.status for row in report.artifacts] == ["absent", "absent"]
    assert report.stages[1].error == "not reached"


def test_warnings_of_steps_are_repeated(run: Run) -> None:
    made = run.results["phone.quantize"].artifact
    run.results["phone.quantize"] = StepResult(made, warnings=("conv1 stays in float",))
    report = run.collect()
    assert "phone.quantize: conv1 stays in float" in report.warnings
    assert phone(report).warnings == ("conv1 stays in float",)


def test_where_files_go(run: Run) -> None:
    assert file_step(run.plan, "phone").name == "phone.quantize"
    assert file_step(run.plan, "baseline").name == "baseline.export"
    assert [folder_of("a.x86", status) for status in ("shipped", "quarantined", "absent")] == [
        "artifacts/a.x86",
        "quarantine/a.x86",
        None,
    ]


def test_budgets(run: Run) -> None:
    found = {(item.metric, item.device): (item.value, item.passed) for item in run.collect().budgets}
    assert found == {
        ("accuracy_drop", None): (0.0, True),
        ("size_ratio", None): (8.0, True),
        ("latency_ms", "host_cpu"): (0.25, True),
        ("latency_ms", "pixel_8"): (None, False),
        ("latency_ratio", "host_cpu"): (4.0, True),
        ("latency_ratio", "pixel_8"): (None, False),
    }


@pytest.mark.parametrize(
    ("budgets", "passed"),
    [
        ({"accuracy_drop": 0.01}, True),  # 0.93 - 0.92 is 0.010000000000000009
        ({"accuracy_drop": 0.0099}, False),
        ({"size_mb": 0.5}, True),
        ({"size_mb": 0.499}, False),
        ({"size_ratio": 4.0}, True),
        ({"size_ratio": 4.01}, False),
    ],
)
def test_the_limit_itself_is_kept(budgets: dict[str, float], passed: bool) -> None:
    baseline = ArtifactRow(
        name="baseline", status="shipped", format="onnx", bytes=2_000_000, metrics={"accuracy": 0.93}
    )
    row = ArtifactRow(
        name="t",
        status="shipped",
        format="onnx",
        bytes=500_000,
        metrics={"accuracy": 0.92},
        deltas={"accuracy": 0.92 - 0.93, "size_ratio": 4.0},
    )
    target = Target(name="t", export=Onnx(), devices=())
    (found,) = judge(Budgets(**budgets), {"t": target}, {"baseline": baseline, "t": row})
    assert found.passed is passed


@pytest.mark.parametrize("allowed", [False, True])
def test_what_could_not_be_measured_fails_unless_allowed(allowed: bool) -> None:
    baseline = ArtifactRow(name="baseline", status="shipped", format="onnx", metrics={"accuracy": 0.9})
    row = ArtifactRow(name="t", status="shipped", format="coreml", bytes=1)
    budgets = Budgets(accuracy_drop=0.1, latency_ms=1, allow_unmeasured=allowed)
    target = Target(name="t", export=Onnx(), devices=("host_cpu",))
    for found in judge(budgets, {"t": target}, {"baseline": baseline, "t": row}):
        assert found.passed is allowed
        assert found.reason == "could not be measured here"


def test_the_paired_interval_covers_the_truth() -> None:
    """In 95 of 100 experiments, as it promises; Wald's own interval is short of that for few discordant samples."""
    rng = np.random.default_rng(0)
    gained, lost, n = 0.02, 0.035, 500
    draws = rng.multinomial(n, [gained, lost, 1 - gained - lost], size=4000)
    inside = [low <= gained - lost <= high for low, high in (paired_interval(b, c, n) for b, c, _ in draws.tolist())]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.012)


def test_the_paired_interval_by_hand() -> None:
    """Add 1/2 to each of the four cells, then take mean and variance of the +1, -1, 0 of n + 2 samples."""
    low, high = paired_interval(10, 30, 1000)
    values, weights = np.array([1.0, -1.0, 0.0]), np.array([10.5, 30.5, 1002 - 41])
    mean = np.average(values, weights=weights)
    error = np.sqrt(np.average((values - mean) ** 2, weights=weights) / 1002)
    assert (low, high) == pytest.approx((mean - 1.95996 * error, mean + 1.95996 * error), rel=1e-5)
    assert paired_interval(0, 0, 100) == pytest.approx((-high_at_zero(), high_at_zero()))


def high_at_zero() -> float:
    return 1.959963984540054 * float(np.sqrt(1.0)) / 102
