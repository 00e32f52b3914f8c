"""A whole run with a teacher: what the report says of it, and what an edited slice makes anew."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from sklearn.metrics import accuracy_score

from edgeforge.core.errors import ConfigurationError
from edgeforge.core.report import Report, StepResult
from edgeforge.pipeline import parse
from edgeforge.plan import Step, build
from edgeforge.run import execute
from edgeforge.store import Store

if TYPE_CHECKING:
    from tests.conftest import Mails

HOSTILE = "<b>web</b>"
TAUGHT = {"steps": 30, "batch_size": 16, "learning_rate": 3e-3}


class Watcher:
    def __init__(self) -> None:
        self.results: dict[str, StepResult] = {}

    def finished(self, step: Step, result: StepResult) -> None:
        self.results[step.name] = result

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def write_data(mails: Mails, folder: Path) -> dict[str, Any]:
    """The mails again, each test mail with where it came from; and texts from elsewhere."""
    chance = random.Random(0)
    texts = mails.task.data.texts()  # type: ignore[attr-defined]
    for part, found in (("train", texts.train), ("test", texts.test)):
        lines = []
        for text, label in zip(found.texts, found.labels.tolist(), strict=True):
            origin = chance.choice([HOSTILE, "phone"])
            lines.append(json.dumps({"text": text, "label": texts.label_names[label], "source": origin}))
        (folder / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\n", encoding="utf-8")
    (folder / "probe.txt").write_text("a recipe for bread\nthe weather in the harbour\nquartz\n", encoding="utf-8")
    data = {"kind": "jsonl", "train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")}
    task = mails.task.model_dump(mode="json", exclude={"labelled"})
    return {**task, "data": data}


def run(task: dict[str, Any], folder: Path, **changes: Any) -> tuple[Report, Watcher]:
    bert = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    source = {
        "name": "taught",
        "task": task,
        "model": {"kind": "config", "architecture": "bert", **bert},
        "stages": [
            {"kind": "train", "steps": 60, "batch_size": 16, "learning_rate": 3e-3},
            {"kind": "distill", "student": {"kind": "layers", "keep": [0]}, **TAUGHT},
        ],
        "targets": [{"name": "phone", "export": "onnx", "devices": []}],
        **changes,
    }
    watcher = Watcher()
    plan = build(parse(yaml.safe_dump(source).encode(), "taught.yaml"))
    outcome = execute(plan, Store(folder / "store"), folder / "out", watcher=watcher)
    assert outcome.error is None
    return outcome.report, watcher


def kept(watcher: Watcher, name: str, array: str) -> np.ndarray:
    artifact = watcher.results[name].artifact
    assert artifact is not None
    found: np.ndarray = np.load(artifact.path / f"{array}.npy")
    return found


def test_a_student_beside_its_teacher(mails: Mails, tmp_path: Path) -> None:
    task = write_data(mails, tmp_path)
    cuts = {"slices": [{"column": "source"}, {"words": [10], "name": "length"}], "probe": str(tmp_path / "probe.txt")}
    report, watcher = run(task, tmp_path, **cuts)
    assert report.teacher == "train"
    row = report.artifact("phone")
    assert row is not None and row.against_teacher is not None
    found = row.against_teacher
    teacher, student = (kept(watcher, f"{name}.evaluate", "logits").argmax(1) for name in ("train", "phone"))
    labels = kept(watcher, "phone.evaluate", "labels")
    assert found.agreement == pytest.approx(accuracy_score(teacher, student))
    assert found.accuracy is not None and found.accuracy.student == pytest.approx(accuracy_score(labels, student))
    by_origin = {one.name: one for one in found.slices[0].groups}
    assert by_origin.keys() == {HOSTILE, "phone"}
    lines = (tmp_path / "test.jsonl").read_text(encoding="utf-8").splitlines()
    from_phone = np.array([json.loads(line)["source"] == "phone" for line in lines])
    assert by_origin["phone"].n == from_phone.sum()
    assert by_origin["phone"].teacher == pytest.approx(accuracy_score(labels[from_phone], teacher[from_phone]))
    assert [one.rule for one in found.slices] == ["source", "length"]
    assert found.probe is not None and (found.probe.n, found.probe.reason) == (3, None)
    probed = [kept(watcher, f"{name}.probe", "logits").argmax(1) for name in ("train", "phone")]
    assert found.probe.agreement == pytest.approx((probed[0] == probed[1]).mean())
    assert found.dark_knowledge is None, "two classes are one pair"
    baseline = report.artifacts[0].against_teacher
    assert baseline is not None and baseline.agreement == 1.0, "the teacher as a file answers as it does"
    check_lineage(report, watcher)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;web&lt;/b&gt;" in page and HOSTILE not in page
    check_nothing_is_trained_anew(task, tmp_path, report)


def check_lineage(report: Report, watcher: Watcher) -> None:
    assert report.lineage is not None
    by_what = {one.what: one for one in report.lineage.sources}
    assert (by_what["teacher"].step, by_what["teacher"].kind) == ("train", "stage")
    trained = watcher.results["train"].artifact
    assert trained is not None and by_what["teacher"].digest == trained.digest
    assert (by_what["data"].licence, by_what["data"].place) == ("cc0-1.0", "train.jsonl, test.jsonl")
    assert {one.name: one.training_steps for one in report.lineage.steps} == {"model": None, "train": 60, "distill": 30}
    row = report.artifact("phone")
    assert row is not None
    made = {step["step"]: step for step in row.lineage["steps"]}
    assert made["distill"]["digest"] == watcher.results["distill"].artifact.digest  # type: ignore[union-attr]
    assert made["phone.export"]["training_steps"] is None


def check_nothing_is_trained_anew(task: dict[str, Any], folder: Path, before: Report) -> None:
    report, watcher = run(task, folder, slices=[{"pattern": "prize"}])
    assert {name for name, result in watcher.results.items() if not result.cached} == {"data.slices"}
    row, old = report.artifact("phone"), before.artifact("phone")
    assert row is not None and row.against_teacher is not None
    assert old is not None and old.against_teacher is not None
    assert [one.rule for one in row.against_teacher.slices] == ["/prize/"]
    assert row.against_teacher.probe is None
    assert row.against_teacher.classes == old.against_teacher.classes


def test_a_column_that_is_not_there_is_found_before_any_work(mails: Mails, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="perhaps you meant 'source'"):
        run(write_data(mails, tmp_path), tmp_path, slices=[{"column": "sorce"}])
    store = Store(tmp_path / "store")
    assert not list((store.root / "sealed").iterdir())
