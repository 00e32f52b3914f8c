"""Whole runs: what is made, what is cached, what a failure leaves, and kill -9 at many points."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import BudgetError, EnvironmentProblem, IncompatiblePlanError, VerificationError
from edgeforge.core.report import StepResult
from edgeforge.core.stage import Job
from edgeforge.exporters.onnx import Onnx
from edgeforge.pipeline import parse
from edgeforge.plan import Step, build
from edgeforge.run import Outcome, execute, steps_from
from edgeforge.stages.verify import Verify
from edgeforge.store import Store

HERE = Path(__file__).parent
TINY: dict[str, Any] = {
    "name": "tiny",
    "task": "image_classification",
    "model": {
        "kind": "config",
        "architecture": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    },
    "stages": [
        {"kind": "train", "epochs": 4, "batch_size": 32, "learning_rate": 1e-2},
        {
            "kind": "prune",
            "structure": {"kind": "channels", "ratio": 0.25},
            "recover": {"steps": 30, "batch_size": 32, "learning_rate": 3e-3, "losses": ["soft_targets"]},
        },
    ],
    "targets": [{"name": "int8", "quantize": {"kind": "int8_static", "samples": 64}, "export": "onnx", "devices": []}],
}


class Watcher:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.results: dict[str, StepResult] = {}
        self.warnings: list[str] = []

    def started(self, step: Step, number: int, of: int) -> None:
        pass

    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def finished(self, step: Step, result: StepResult) -> None:
        self.results[step.name] = result

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def tiny(**changes: Any) -> dict[str, Any]:
    return {**TINY, **changes}


def run(pipeline: dict[str, Any], folder: Path, **options: Any) -> tuple[Outcome, Watcher]:
    plan = build(parse(yaml.safe_dump(pipeline).encode(), "test.yaml"))
    watcher = Watcher()
    outcome = execute(plan, Store(folder / "store"), folder / "out", watcher=watcher, **options)
    return outcome, watcher


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome, Watcher]:
    """A tiny run that ended well."""
    folder = tmp_path_factory.mktemp("run")
    outcome, watcher = run(TINY, folder)
    assert outcome.error is None, outcome.error
    return folder, outcome, watcher


def test_a_run_ships_what_its_report_says(finished: tuple[Path, Outcome, Watcher]) -> None:
    folder, _, watcher = finished
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["schema"] == "edgeforge.report/1"
    assert [row["name"] for row in report["stages"]] == ["model", "train", "prune", "prune.recover"]
    rows = {row["name"]: row for row in report["artifacts"]}
    assert rows.keys() == {"baseline", "int8"}
    for row in rows.values():
        assert row["status"] == "shipped"
        assert row["parity"]["passed"] is True
        assert row["metrics"]["accuracy"] > 0.5
        path = folder / "out" / row["path"]
        assert path.stat().st_size == row["bytes"]
    assert rows["int8"]["bytes"] < rows["baseline"]["bytes"]
    assert not any(result.cached for result in watcher.results.values())
    for name in ("report.md", "report.html", "pipeline.yaml"):
        assert (folder / "out" / name).stat().st_size > 100


def test_a_rerun_does_no_work(finished: tuple[Path, Outcome, Watcher], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, first, _ = finished

    def works(*_: Any) -> None:
        raise AssertionError("a cached step was run")

    for step in build(parse(yaml.safe_dump(TINY).encode(), "test.yaml")).steps:
        monkeypatch.setattr(type(step.stage), "run", works)
    outcome, watcher = run(TINY, folder)
    assert all(result.cached for result in watcher.results.values())
    assert [row.sha256 for row in outcome.report.artifacts] == [row.sha256 for row in first.report.artifacts]


def test_names_devices_and_budgets_change_no_key(finished: tuple[Path, Outcome, Watcher]) -> None:
    folder, _, _ = finished
    target = {**TINY["targets"][0], "name": "renamed"}
    stages = [{**TINY["stages"][0], "name": "teacher"}, TINY["stages"][1]]
    _, watcher = run(tiny(name="other", stages=stages, targets=[target], budgets={"size_mb": 5}), folder)
    assert all(result.cached for result in watcher.results.values())


def test_a_changed_stage_is_made_anew_and_so_is_what_follows(finished: tuple[Path, Outcome, Watcher]) -> None:
    before = {step.name: step.key for step in build(parse(yaml.safe_dump(TINY).encode(), "a")).steps}
    stages = [TINY["stages"][0], {**TINY["stages"][1], "structure": {"kind": "channels", "ratio": 0.5}}]
    after = {step.name: step.key for step in build(parse(yaml.safe_dump(tiny(stages=stages)).encode(), "a")).steps}
    same = {name for name in before if before[name] == after[name]}
    assert {"model", "train", "train.evaluate", "baseline.export"} <= same
    assert not {name for name in same if name.startswith(("prune", "int8"))}


def test_from_a_stage_rebuilds_it_and_what_depends_on_it(finished: tuple[Path, Outcome, Watcher]) -> None:
    plan = build(parse(yaml.safe_dump(TINY).encode(), "a"))
    chosen = steps_from(plan, "prune")
    assert {"prune", "prune.recover", "int8.export", "int8.verify"} <= chosen
    assert not chosen & {"model", "train", "baseline.export"}
    with pytest.raises(IncompatiblePlanError, match="perhaps you meant 'prune'"):
        steps_from(plan, "prun")


def test_a_damaged_artifact_is_rebuilt_to_the_same_bytes(finished: tuple[Path, Outcome, Watcher]) -> None:
    folder, first, _ = finished
    plan = build(parse(yaml.safe_dump(TINY).encode(), "a"))
    sealed = folder / "store" / "sealed" / plan.step("int8.quantize").key / "model.onnx"
    os.truncate(sealed, 100)
    outcome, watcher = run(TINY, folder)
    assert any("digest mismatch" in text for text in watcher.warnings)
    assert not watcher.results["int8.quantize"].cached
    assert [row.sha256 for row in outcome.report.artifacts] == [row.sha256 for row in first.report.artifacts]


def test_a_file_that_fails_verification_goes_to_quarantine(
    finished: tuple[Path, Outcome, Watcher], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    verify = Verify.run

    def refuses(self: Verify, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        facts = dict(verify(self, inputs, job))
        if "unquantized" in inputs:
            facts |= {"passed": False, "reason": "a planted fault"}
        return facts

    monkeypatch.setattr(Verify, "run", refuses)
    outcome, watcher = run(TINY, tmp_path)
    assert isinstance(outcome.error, VerificationError)
    assert outcome.error.exit_code == 6
    assert "a planted fault" in str(outcome.error)
    assert (tmp_path / "out" / "quarantine" / "int8" / "model.onnx").is_file()
    assert not (tmp_path / "out" / "artifacts" / "int8").exists()
    assert (tmp_path / "out" / "artifacts" / "baseline" / "model.onnx").is_file()
    assert watcher.results.keys() == {step.name for step in build(parse(yaml.safe_dump(TINY).encode(), "a")).steps} - {
        "int8.evaluate"
    }

    # Mended, the same folders end well, and nothing stays in quarantine.
    monkeypatch.setattr(Verify, "run", verify)
    plan = build(parse(yaml.safe_dump(TINY).encode(), "a"))
    watcher = Watcher()
    rebuild = frozenset({"int8.verify"})
    outcome = execute(plan, Store(tmp_path / "store"), tmp_path / "out", watcher=watcher, rebuild=rebuild)
    assert outcome.error is None
    assert not (tmp_path / "out" / "quarantine" / "int8").exists()
    assert (tmp_path / "out" / "artifacts" / "int8" / "model.onnx").is_file()


def test_a_converter_that_crashes_takes_only_its_target_along(
    finished: tuple[Path, Outcome, Watcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = finished
    export = Onnx.export

    def crashes(self: Onnx, model: Artifact, job: Job) -> Mapping[str, Any]:
        if self.opset == 22:
            raise RuntimeError("internal converter error\nwith a long trace")
        return export(self, model, job)

    monkeypatch.setattr(Onnx, "export", crashes)
    targets = [{"name": "broken", "export": {"kind": "onnx", "opset": 22}, "devices": []}, *TINY["targets"]]
    outcome, _ = run(tiny(targets=targets), folder)
    rows = {row.name: row for row in outcome.report.artifacts}
    assert rows["broken"].status == "absent"
    assert "internal converter error" in (rows["broken"].reason or "")
    assert rows["int8"].status == "shipped"
    assert isinstance(outcome.error, VerificationError)


def test_a_missed_budget_is_told_after_everything_is_written(finished: tuple[Path, Outcome, Watcher]) -> None:
    folder, _, _ = finished
    outcome, _ = run(tiny(budgets={"size_mb": 0.001}), folder)
    assert isinstance(outcome.error, BudgetError)
    assert outcome.error.exit_code == 5
    assert re.fullmatch(r"int8: size_mb is 0\.\d{2,6}, the limit is 0\.001", outcome.error.what)
    assert (folder / "out" / "artifacts" / "int8" / "model.onnx").is_file()


def test_a_model_that_cannot_take_the_images_is_refused_before_any_work(tmp_path: Path) -> None:
    vit = {"kind": "config", "architecture": "vit", "patch_size": 7, "hidden_size": 16, "num_attention_heads": 2}
    with pytest.raises(Exception, match="patch") as caught:
        run(tiny(model=vit), tmp_path)
    assert caught.value.exit_code in (2, 4)  # type: ignore[attr-defined]
    assert not list((tmp_path / "store" / "sealed").iterdir())


def test_an_output_folder_that_cannot_be_written_is_told_first(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file in the way")
    with pytest.raises(EnvironmentProblem, match="output folder"):
        run(TINY, tmp_path)


# A process that may write no file above a size meets what a full disk gives: an error in the middle of a file.
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.argv = ["edgeforge", *sys.argv[2:]]
from edgeforge.cli import main
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize("limit", [3_000, 20_000])
def test_a_disk_too_small_ends_in_one_line_and_leaves_nothing_half_written(
    finished: tuple[Path, Outcome, Watcher], tmp_path: Path, limit: int
) -> None:
    pipeline = tmp_path / "tiny.yaml"
    pipeline.write_text(yaml.safe_dump(TINY))
    arguments = ["run", str(pipeline), "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", LIMITED, str(limit), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 7, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "make room" in done.stderr
    store = Store(tmp_path / "store")
    for folder in (tmp_path / "store" / "sealed").iterdir():
        assert store.open(folder.name) is not None
    assert not list((tmp_path / "out").rglob("*.onnx"))


def killed_runs(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    folder.mkdir()
    pipeline = folder / "tiny.yaml"
    stages = [dict(TINY["stages"][0]), json.loads(json.dumps(TINY["stages"][1]))]
    stages[0]["checkpoint_seconds"] = stages[1]["recover"]["checkpoint_seconds"] = 0
    pipeline.write_text(yaml.safe_dump(tiny(stages=stages)))
    command = [sys.executable, str(HERE / "killing.py"), str(pipeline), str(folder / "store"), str(folder / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(kills), str(seed)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.slow
def test_killed_at_random_points_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    undisturbed = killed_runs(tmp_path / "undisturbed", 0, 0)
    assert None not in undisturbed["digests"].values()
    killed = 0
    for seed in range(3):
        disturbed = killed_runs(tmp_path / f"disturbed{seed}", 12, seed)
        assert disturbed["digests"] == undisturbed["digests"]
        killed += disturbed["killed"]
    assert killed >= 10


@pytest.mark.slow
def test_two_runs_share_a_store_at_once(tmp_path: Path) -> None:
    pipeline = tmp_path / "tiny.yaml"
    pipeline.write_text(yaml.safe_dump(TINY))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "edgeforge", "run", str(pipeline)),
                *("--store", str(tmp_path / "store"), "--out", str(tmp_path / f"out{number}")),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in runs]
    assert [process.returncode for process in runs] == [0, 0], outputs
    reports = [json.loads((tmp_path / f"out{number}" / "report.json").read_text()) for number in range(2)]
    assert [row["sha256"] for row in reports[0]["artifacts"]] == [row["sha256"] for row in reports[1]["artifacts"]]
    # Each step was made by one of the two and found by the other.
    cached = [[stage["cached"] for stage in report["stages"]] for report in reports]
    assert all(one != other for one, other in zip(*cached, strict=True))


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """The same pipeline, unchanged, on two CPU processes."""
    vit = {
        "kind": "config",
        "architecture": "vit",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "patch_size": 4,
    }
    train = {"kind": "train", "steps": 20, "batch_size": 32, "learning_rate": 1e-3, "precision": "float32"}
    pipeline = tmp_path / "two.yaml"
    pipeline.write_text(yaml.safe_dump(tiny(model=vit, stages=[train], targets=[])))
    arguments = ["-m", "edgeforge", "run", str(pipeline), "--store"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for command, name in (([sys.executable], "one"), (launch, "two")):
        whole = [*command, *arguments, str(tmp_path / name), "--out", str(tmp_path / f"out-{name}")]
        done = subprocess.run(whole, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    from safetensors.torch import load_file

    plan = build(parse(pipeline.read_bytes(), "two.yaml"))
    weights = [
        load_file(tmp_path / name / "sealed" / plan.step("train").key / "model.safetensors") for name in ("one", "two")
    ]
    apart = {name: float((weights[1][name] - value).abs().max()) for name, value in weights[0].items()}
    assert max(apart.values()) < 1e-4, apart
    assert max(apart.values()) > 0, "each took half of a batch, whose gradients are summed in another order"
