"""A file of answers as the teacher: which row is whose, what is refused, what the report says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml

from edgeforge.core.errors import DataError, EdgeForgeError, IncompatiblePlanError
from edgeforge.pipeline import parse
from edgeforge.plan import Plan, build
from edgeforge.report import _unasked
from edgeforge.run import execute
from edgeforge.store import Store
from edgeforge.teachers.file import File

if TYPE_CHECKING:
    from conftest import Digits, Mails, Tales

CPU = torch.device("cpu")


def right(labels: np.ndarray, count: int) -> np.ndarray:
    """Logits that know every label; each row is told from the others by its first number's fraction."""
    found = 6.0 * np.eye(count, dtype=np.float32)[labels % count]
    found[:, 0] += np.arange(len(labels)) / (4 * len(labels))
    return found


def kept(folder: Path, answers: np.ndarray) -> dict[str, Any]:
    np.save(folder / "answers.npy", answers)
    return {"kind": "file", "path": str(folder / "answers.npy")}


def whole(part: Any) -> np.ndarray:
    """The labels of the whole training part."""
    return np.asarray(part.labels)


def plan_of(teacher: Any, *, task: Any = "image_classification", targets: Any = (), **stage: Any) -> Plan:
    shape = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    student = {"kind": "width", "multiple": 0.5}
    taught = {"kind": "distill", "student": student, "teacher": teacher, "steps": 3, "batch_size": 16, **stage}
    said = {"name": "filed", "task": task, "model": {"kind": "config", "architecture": "resnet", **shape}}
    return build(parse(yaml.safe_dump({**said, "stages": [taught], "targets": list(targets)}).encode(), "filed.yaml"))


def test_each_sample_has_its_own_row(digits: Digits, tmp_path: Path) -> None:
    data: Any = digits.data
    answers = right(whole(data.parts["train"]), 10)
    teacher = File.model_validate(kept(tmp_path, answers))
    teacher.check_data(data)
    rows = [5, 0, data.size("transfer") - 1]
    found = teacher.open({}, CPU, data)(data.batch("transfer", rows), frozenset()).logits
    assert torch.equal(found, torch.from_numpy(answers[data.rows["transfer"][rows]]))
    assert data.rows["transfer"][5] != 5, "samples are kept apart for validation before it"


def test_unlabelled_texts_stand_behind_the_labelled_ones(mails: Mails, tmp_path: Path) -> None:
    data: Any = mails.data
    part = data.texts.parts["transfer"].labels
    assert (part == -100).any()
    answers = right(np.where(part == -100, 0, part), 2)
    found = File.model_validate(kept(tmp_path, answers)).open({}, CPU, data)
    last = data.size("transfer") - 1
    batch = data.batch("transfer", [last])
    assert batch["labels"].item() == -100
    assert torch.equal(found(batch, frozenset()).logits[0], torch.from_numpy(answers[-1]))


def test_probabilities_become_logits_of_the_same(digits: Digits, tmp_path: Path) -> None:
    data: Any = digits.data
    powers = np.exp(right(whole(data.parts["train"]), 10).astype(np.float64))
    shares = powers / powers.sum(axis=1, keepdims=True)
    shares[0] = np.eye(10)[whole(data.parts["train"])[0]]  # certainty has a logarithm, too
    said = {**kept(tmp_path, shares), "holds": "probabilities"}
    batch = data.batch("transfer", range(20))
    found = File.model_validate(said).open({}, CPU, data)(batch, frozenset()).logits
    expected = torch.from_numpy(shares[data.rows["transfer"][:20]])
    torch.testing.assert_close(found.double().softmax(dim=1), expected, rtol=1e-5, atol=1e-9)


def damaged(name: str, labels: np.ndarray) -> Any:
    answers = right(labels, 10)
    return {
        "a row too few": answers[:-1],
        "a label too few": answers[:, :-1],
        "flat": answers[:, 0],
        "integers": answers.astype(np.int64),
        "no number": np.where(np.arange(10) == 3, np.nan, answers),
        "columns turned": np.roll(answers, 1, axis=1),
        "rows mixed": answers[np.random.default_rng(0).permutation(len(answers))],
    }[name]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("a row too few", r"it has shape \(\d+, 10\), and the training part has \d+ samples of 10 labels"),
        ("a label too few", r"it has shape \(\d+, 9\)"),
        ("flat", r"it has shape \(\d+,\)"),
        ("integers", "an array of int64"),
        ("no number", "not all numbers"),
        ("columns turned", r"right for [0-9.]+% of the samples(.|\n)*columns in that of its labels"),
        ("rows mixed", r"a guess is for 10.0%"),
    ],
)
def test_what_is_no_answer_about_these_samples_is_refused(
    digits: Digits, tmp_path: Path, name: str, match: str
) -> None:
    data: Any = digits.data
    teacher = File.model_validate(kept(tmp_path, damaged(name, whole(data.parts["train"]))))
    with pytest.raises(DataError, match=match):
        teacher.check_data(data)


def test_logits_are_no_probabilities(digits: Digits, tmp_path: Path) -> None:
    data: Any = digits.data
    said = {**kept(tmp_path, right(whole(data.parts["train"]), 10)), "holds": "probabilities"}
    with pytest.raises(DataError, match="no probabilities"):
        File.model_validate(said).check_data(data)


@pytest.mark.parametrize("content", [b"", b"no array", b"\x80\x04N.", b"PK\x03\x04 cut"])
def test_what_is_no_array_is_refused_and_nothing_is_unpickled(digits: Digits, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "answers.npy").write_bytes(content)
    with pytest.raises(DataError, match="no array that NumPy can read"):
        File(path=str(tmp_path / "answers.npy")).check_data(digits.data)


@pytest.mark.parametrize(
    ("stage", "match"),
    [
        ({"losses": ["soft_targets", "hidden_states"]}, "a `file` holds what was answered, and no layer"),
        ({"task": {"kind": "image_classification", "augment": {"flip": True}}}, "`augment` changes them"),
        ({"on_policy": {}}, "answered before the student wrote"),
    ],
)
def test_the_plan_refuses_what_it_cannot_teach(
    digits: Digits, tmp_path: Path, stage: dict[str, Any], match: str
) -> None:
    data: Any = digits.data
    with pytest.raises(IncompatiblePlanError, match=match):
        plan_of(kept(tmp_path, right(whole(data.parts["train"]), 10)), **stage)


def test_the_plan_refuses_it_for_language_models_and_a_file_that_is_not_there(tales: Tales, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        plan_of({"kind": "file", "path": str(tmp_path / "none.npy")})
    with pytest.raises(IncompatiblePlanError, match="task's data") as caught:
        File(path="x.npy").check_task(tales.task, "stages[0].teacher")
    assert caught.value.where == "stages[0].teacher"


def test_a_report_says_that_the_file_cannot_be_asked(digits: Digits, tmp_path: Path) -> None:
    data: Any = digits.data
    target = {"name": "phone", "export": "onnx", "devices": []}
    found = plan_of(kept(tmp_path, right(whole(data.parts["train"]), 10)), targets=[target])
    said = _unasked(found, "phone")
    assert said is not None and said.teacher == "distill"
    assert "a file of answers about training samples" in str(said.reason)
    assert _unasked(found, "baseline") is None


def test_a_run_learns_from_it_and_the_report_says_whose_answers_they_were(digits: Digits, tmp_path: Path) -> None:
    class Silent:
        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: None

    (tmp_path / "LICENSE").write_text("MIT License\n", encoding="utf-8")
    from edgeforge.tasks.image_classification import ImageClassification

    data: Any = ImageClassification().open()
    teacher = kept(tmp_path, right(whole(data.parts["train"]), 10))
    found = plan_of(teacher)
    outcome = execute(found, Store(tmp_path / "store"), tmp_path / "out", watcher=Silent())
    assert outcome.error is None, outcome.error
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    (source,) = [one for one in report["lineage"]["sources"] if one["what"] == "teacher"]
    assert (source["step"], source["kind"], source["place"]) == ("distill", "file", "answers.npy")
    assert len(source["digest"]) == 64
    np.save(tmp_path / "answers.npy", right(whole(data.parts["train"]), 10) * 2)
    assert plan_of(teacher).step("distill").key != found.step("distill").key
    with pytest.raises(EdgeForgeError, match="it has shape"):
        np.save(tmp_path / "answers.npy", np.zeros((3, 10), np.float32))
        execute(plan_of(teacher), Store(tmp_path / "store"), tmp_path / "out", watcher=Silent())
