"""Whole runs with many teachers, or with the student as its own: every kind in one chain, an assistant, kill -9."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from edgeforge.core.errors import ModelError
from edgeforge.core.report import StepResult
from edgeforge.models import loading
from edgeforge.pipeline import parse
from edgeforge.plan import Plan, Step, build
from edgeforge.run import execute
from edgeforge.store import Store

HERE = Path(__file__).parent
STEPS: dict[str, Any] = {"steps": 20, "batch_size": 32, "learning_rate": 5e-3, "checkpoint_seconds": 0}
BOTH = [{"kind": "hard_labels", "weight": 0.5}, {"kind": "soft_targets", "temperature": 2, "weight": 0.5}]
HALF = {"kind": "width", "multiple": 0.5}
ASSISTED = [
    {"kind": "train", "name": "teacher", **STEPS},
    {"kind": "distill", "name": "assistant", "student": HALF, **STEPS},
    {"kind": "distill", "name": "student", "student": HALF, **STEPS},
]
"""A teacher assistant (Mirzadeh et al., 2020, arXiv:1902.03393): two `distill` stages."""
SELF_TAUGHT = [
    {"kind": "finetune", "name": "averaged", "teacher": {"kind": "ema", "decay": 0.9}, "losses": BOTH, **STEPS},
    {"kind": "finetune", "name": "snapshot", "teacher": "snapshots", "cycles": 2, "losses": BOTH, **STEPS},
    {"kind": "born_again", "name": "born", "generations": 2, **STEPS},
]
TOGETHER = {
    "kind": "distill",
    "name": "taught_by_all",
    "student": HALF,
    "teacher": {
        "kind": "ensemble",
        "members": [{"kind": "model", "stage": "teacher"}, {"kind": "cached", "stage": "born"}],
        "weights": [1, 2],
    },
    **STEPS,
}


def pipeline(*stages: dict[str, Any]) -> bytes:
    model = {"kind": "config", "architecture": "resnet", "embedding_size": 8, "hidden_sizes": [16, 32]}
    said = {"name": "test", "task": "image_classification", "model": {**model, "depths": [1, 1]}}
    return yaml.safe_dump({**said, "stages": list(stages)}).encode()


class Watcher:
    def __init__(self) -> None:
        self.results: dict[str, StepResult] = {}

    def started(self, step: Step, number: int, of: int) -> None:
        pass

    def update(self, done: int, total: int, note: str = "") -> None:
        assert 0 <= done <= total

    def finished(self, step: Step, result: StepResult) -> None:
        self.results[step.name] = result

    def warn(self, message: str) -> None:
        pass


def run(plan: Plan, folder: Path) -> dict[str, StepResult]:
    watcher = Watcher()
    outcome = execute(plan, Store(folder / "store"), folder / "out", watcher=watcher)
    assert outcome.error is None, outcome.error
    return watcher.results


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, dict[str, StepResult], Any]:
    """All of them in one chain, and its report."""
    folder = tmp_path_factory.mktemp("run")
    plan = build(parse(pipeline(*ASSISTED, *SELF_TAUGHT, TOGETHER), "test.yaml"))
    results = run(plan, folder)
    return plan, results, json.loads((folder / "out" / "report.json").read_text())


def weights(result: StepResult) -> dict[str, torch.Tensor]:
    assert result.artifact is not None
    return dict(loading.load(result.artifact.path).state_dict())


def test_an_assistant_is_two_stages(finished: tuple[Plan, dict[str, StepResult], Any]) -> None:
    plan, _, report = finished
    assert plan.step("assistant").inputs["teacher"] == "teacher"
    assert plan.step("student").inputs["teacher"] == "assistant", "each is taught by the one before"
    rows = {row["name"]: row["facts"] for row in report["stages"]}
    sizes = [rows[name]["params"] for name in ("teacher", "assistant", "student")]
    assert sizes[0] > 2 * sizes[1] > 4 * sizes[2]
    direct = {**ASSISTED[2], "student": {"kind": "width", "multiple": 0.25}}
    alone = build(parse(pipeline(ASSISTED[0], direct), "test.yaml"))
    assert alone.step("teacher").key == plan.step("teacher").key
    assert alone.step("student").key != plan.step("student").key


def test_every_kind_runs_and_is_reported(finished: tuple[Plan, dict[str, StepResult], Any]) -> None:
    _, results, report = finished
    rows = {row["name"]: row["facts"] for row in report["stages"]}
    for name in ("averaged", "snapshot", "born", "taught_by_all"):
        assert results[name].error is None
        assert 0 < rows[name]["metrics"]["accuracy"] <= 1
        assert rows[name]["history"]["loss"]
    assert [one["steps"] for one in rows["born"]["generations"]] == [20, 20]
    assert rows["born"]["ensemble"].keys() == {"accuracy"}
    assert rows["born"]["params"] == rows["student"]["params"]
    changed = [weights(results[name]) for name in ("student", "averaged", "snapshot", "born")]
    name = "classifier.1.weight"
    assert not any(torch.equal(changed[a][name], changed[b][name]) for a in range(4) for b in range(a))


def test_an_ensemble_reads_its_members(finished: tuple[Plan, dict[str, StepResult], Any]) -> None:
    plan, results, _ = finished
    artifact = results["taught_by_all"].artifact
    assert artifact is not None
    assert artifact.parents == {
        "model": plan.step("born").key,
        "teacher.members[0]": plan.step("teacher").key,
        "teacher.members[1]": plan.step("born").key,
        "logits.members[1]": plan.step("born.cache").key,
    }
    assert artifact.recipe["teacher"] == {"kind": "ensemble", "shares": [1 / 3, 2 / 3]}
    student, born = (results[name].artifact for name in ("taught_by_all", "born"))
    assert student is not None and born is not None
    assert student.facts["params"] < born.facts["params"], "made from the chain's model, not from a member"


def test_a_teacher_for_other_labels_is_refused_before_any_work(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    shape: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
    other = ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=3, **shape))
    loading.save(other, tmp_path / "other")
    teacher = {"kind": "model", "model": {"kind": "pretrained", "path": str(tmp_path / "other")}}
    taught = {"kind": "finetune", "teacher": teacher, "losses": BOTH, **STEPS}
    plan, watcher = build(parse(pipeline(ASSISTED[0], taught), "test.yaml")), Watcher()
    with pytest.raises(ModelError, match="it has 3 labels, the task has 10"):
        execute(plan, Store(tmp_path / "store"), tmp_path / "out", watcher=watcher)
    assert not watcher.results


@pytest.mark.slow
def test_killed_at_random_points_they_end_with_the_same_bytes(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_bytes(pipeline(ASSISTED[0], *SELF_TAUGHT))
    found = []
    for kills in (0, 6):
        folder = tmp_path / str(kills)
        command = [sys.executable, str(HERE / "killing.py"), str(file), str(folder / "store"), str(folder / "out")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, str(kills), "3"], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[0]["digests"] == found[1]["digests"]
    assert found[1]["killed"] > 0
