"""Teaching on some of the samples: what is left out never enters training, and what the student knows of it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from pydantic import ValidationError

from edgeforge.core.errors import DataError, IncompatiblePlanError
from edgeforge.core.stage import Job
from edgeforge.core.task import NO_LABEL, Task
from edgeforge.models import loading
from edgeforge.pipeline import Pipeline
from edgeforge.plan import build
from edgeforge.run import _Runner
from edgeforge.stages.distill import Distill
from edgeforge.stages.evaluate import Evaluate
from edgeforge.stages.train import Train
from edgeforge.store import Store
from edgeforge.tasks.image_classification import Augment, ImageClassification
from edgeforge.training.objective import Trainee
from edgeforge.training.transfer import Transfer, corrected

if TYPE_CHECKING:
    from conftest import Digits, Mails, Tales

    from edgeforge.core.report import StepResult
    from edgeforge.plan import Step

ROOT = Path(__file__).parents[2]
EPOCHS = 20
STUDENT = {"kind": "config", "architecture": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
BERT = {"kind": "config", "architecture": "bert", "num_hidden_layers": 2, "num_attention_heads": 4}
BERT |= {"hidden_size": 32, "intermediate_size": 48}


class Notes:
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.results: dict[str, StepResult] = {}

    def started(self, step: Step, number: int, of: int) -> None:
        pass

    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def finished(self, step: Step, result: StepResult) -> None:
        self.results[step.name] = result

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def chosen(**said: Any) -> Transfer:
    return Transfer.model_validate(said)


def labels(data: Any, split: Any) -> np.ndarray:
    found: np.ndarray = data.batch(split, range(data.size(split)))["labels"].numpy()
    return found


# -- which samples


def test_no_sample_of_a_class_left_out_is_chosen(digits: Digits) -> None:
    truth = labels(digits.data, "transfer")
    for said, numbers in (([3], [3]), (["0", 7], [0, 7])):
        rows = chosen(omit_classes=said).rows(digits.data, "transfer")
        assert rows == [row for row, label in enumerate(truth) if label not in numbers]


def test_samples_without_a_label_might_be_of_the_class(mails: Mails) -> None:
    truth = labels(mails.data, "transfer")
    assert (truth == NO_LABEL).any()
    assert chosen(omit_classes=["spam"]).rows(mails.data, "transfer") == np.flatnonzero(truth == 0).tolist()
    assert chosen(samples="unlabelled").rows(mails.data, "transfer") == np.flatnonzero(truth == NO_LABEL).tolist()
    assert chosen(samples="labelled").rows(mails.data, "transfer") == np.flatnonzero(truth != NO_LABEL).tolist()
    assert chosen().rows(mails.data, "transfer") == list(range(len(truth)))


def test_an_unknown_label_is_refused_with_those_there_are(digits: Digits, mails: Mails) -> None:
    with pytest.raises(IncompatiblePlanError, match=r"omit_classes: no label is named '10'(.|\n)*0, 1, 2, 3, 4, 5"):
        chosen(omit_classes=[10]).rows(digits.data, "train")
    with pytest.raises(IncompatiblePlanError, match=r"'spams'; perhaps you meant 'spam'\? Known: ham, spam"):
        chosen(omit_classes=["spams"]).rows(mails.data, "train")


def test_a_selection_of_nothing_is_refused(digits: Digits, tales: Tales) -> None:
    with pytest.raises(DataError, match=r"of \d+ samples none is left"):
        chosen(samples="unlabelled").rows(digits.data, "transfer")
    with pytest.raises(DataError, match="none is left"):
        chosen(omit_classes=list(range(10))).rows(digits.data, "transfer")
    with pytest.raises(IncompatiblePlanError, match="no label for each sample"):
        chosen(samples="labelled").rows(tales.data, "transfer")
    with pytest.raises(ValidationError, match="no known class"):
        chosen(omit_classes=[3], samples="unlabelled")


def test_it_is_found_before_any_work(tmp_path: Path) -> None:
    stage = {"kind": "distill", "student": STUDENT, "transfer": {"omit_classes": ["three"]}}
    model = {"name": "t", "task": "image_classification", "model": STUDENT, "stages": ["train", stage]}
    runner = _Runner(build(Pipeline.model_validate(model)), Store(tmp_path), Notes(), frozenset())
    with pytest.raises(IncompatiblePlanError, match="no label is named 'three'"):
        runner.rehearse()
    alone = {**stage, "losses": ["hard_labels"], "transfer": {"samples": "unlabelled"}}
    with pytest.raises(IncompatiblePlanError, match=r"transfer.samples: samples without a label teach nothing"):
        build(Pipeline.model_validate({**model, "stages": ["train", alone]}))


# -- what the student knows of a class that it never saw


def brute(logits: np.ndarray, truth: np.ndarray, omitted: list[int], bias: float) -> float:
    moved = logits.copy()
    moved[:, omitted] += bias
    return float((moved.argmax(axis=1) == truth).mean())


@pytest.mark.parametrize("omitted", [[2], [0, 3]])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_bias_gets_more_right(seed: int, omitted: list[int]) -> None:
    chance = np.random.default_rng(seed)
    truth = chance.integers(0, 5, 60)
    logits = chance.normal(size=(60, 5)) + 2 * np.eye(5)[truth]
    logits[:, omitted] -= 2.5
    found = corrected(logits, truth, omitted)
    tried = [brute(logits, truth, omitted, bias) for bias in np.linspace(-12, 12, 2401)]
    assert found["accuracy_of_all_with_bias"] == pytest.approx(brute(logits, truth, omitted, float(found["bias"] or 0)))
    assert found["accuracy_of_all_with_bias"] >= max(tried)
    assert found["accuracy_of_all"] == brute(logits, truth, omitted, 0.0)
    mine = np.isin(truth, omitted)
    assert found["accuracy"] == (logits[mine].argmax(axis=1) == truth[mine]).mean()
    assert found["validation_samples"] == mine.sum()


def test_a_model_that_needs_no_bias_gets_none() -> None:
    truth = np.array([0, 1, 2, 1])
    found = corrected(np.eye(3)[truth] * 5, truth, [1])
    assert (found["bias"], found["accuracy"], found["accuracy_with_bias"]) == (0.0, 1.0, 1.0)
    absent = corrected(np.eye(3)[truth] * 5, np.array([0, 2, 2, 0]), [1])
    assert absent["accuracy"] is None


@pytest.fixture
def shifted() -> ImageClassification:
    """Digits moved about by a pixel, as Hinton's were by two: some then look like other ones."""
    return ImageClassification(augment=Augment(crop=1))


def job(task: Task, folder: Path, notes: Notes) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    return Job(task, folder, 0, functools.cache(Accelerator), notes)


def test_hinton_s_three(
    digits: Digits, shifted: ImageClassification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soft targets of other digits teach much of a class that was never shown; hard labels teach nothing of it."""
    shown: list[torch.Tensor] = []
    forward, data, notes = Trainee.forward, shifted.open(), Notes()
    recipe = {"batch_size": 64, "learning_rate": 1e-2, "precision": "float32"}
    train = Train.model_validate({"epochs": 6, **recipe})
    train.run({"model": digits.torch("resnet")}, job(shifted, tmp_path / "teacher", notes))
    teacher = digits.artifact(tmp_path / "teacher", "torch")

    def watched(self: Trainee, batch: Any, answer: Any, own_words: bool = False) -> torch.Tensor:
        shown.append(batch["labels"].clone())
        return forward(self, batch, answer, own_words)

    monkeypatch.setattr(Trainee, "forward", watched)
    student = {"kind": "config", "architecture": "resnet", "embedding_size": 16, "hidden_sizes": [16, 32]}
    student |= {"depths": [1, 1]}
    said = {"kind": "distill", **recipe, "epochs": EPOCHS, "student": student, "transfer": {"omit_classes": [3]}}
    facts, right = {}, {}
    test = data.batch("test", np.flatnonzero(labels(data, "test") == 3).tolist())
    for name, loss in (("soft", {"kind": "soft_targets", "temperature": 10}), ("hard", {"kind": "hard_labels"})):
        stage = Distill.model_validate({**said, "losses": [loss]})
        found = stage.run({"model": teacher, "teacher": teacher}, job(shifted, tmp_path / name, notes))
        facts[name] = found["transfer"]
        with torch.no_grad():
            answers = loading.load(tmp_path / name)(pixel_values=test["pixel_values"]).logits.argmax(dim=1)
        right[name] = float((answers == 3).float().mean())
    size, threes = data.size("transfer"), int((labels(data, "transfer") == 3).sum())
    assert {(one["samples"], one["of"]) for one in facts.values()} == {(size - threes, size)}
    assert len(shown) == 2 * EPOCHS * ((size - threes) // 64)
    assert set(torch.cat(shown).tolist()) == {0, 1, 2, 4, 5, 6, 7, 8, 9}
    assert right["hard"] == 0
    assert right["soft"] > 0.25
    about = facts["soft"]["omitted"]
    assert about["accuracy_of_all_with_bias"] >= about["accuracy_of_all"]
    assert "none of 3 (transfer.omit_classes)" in notes.warnings[0]
    assert f"{about['accuracy']:.1%} are right" in notes.warnings[0]


# -- general texts first, then the task's


def snippet() -> list[dict[str, Any]]:
    """The stages as docs/distillation.md has them."""
    page = (ROOT / "docs" / "distillation.md").read_text(encoding="utf-8")
    text = page.partition("## General texts first")[2].partition("```yaml\n")[2].partition("```")[0]
    stages: list[dict[str, Any]] = yaml.safe_load(text)
    return stages


def test_general_distillation_then_the_task_s(mails: Mails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own stages: the first reads general texts only, taught by the model before it was fine-tuned."""
    general = tmp_path / "general.jsonl"
    general.write_text("".join(json.dumps({"text": f"the whale of {word}"}) + "\n" for word in "abcdefgh" * 8))
    data = {**mails.task.model_dump(mode="json")["data"], "unlabelled": str(general)}
    stages = [{**stage, "batch_size": 16, "steps": 6, "epochs": None} for stage in snippet()]
    source = {
        "name": "tiny",
        "task": {**mails.task.model_dump(mode="json"), "data": data, "max_length": 12},
        "model": BERT,
        "stages": stages,
    }
    plan = build(Pipeline.model_validate(source))
    assert plan.step("general").inputs["teacher"] == "model"
    assert plan.step("finetune").inputs["teacher"] == "train"
    shown: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    forward = Trainee.forward

    def watched(self: Trainee, batch: Any, answer: Any, own_words: bool = False) -> torch.Tensor:
        shown.append((self.losses[0].kind, batch["labels"].clone(), batch["rows"].clone()))
        return forward(self, batch, answer, own_words)

    monkeypatch.setattr(Trainee, "forward", watched)
    watcher = Notes()
    runner = _Runner(plan, Store(tmp_path / "store"), watcher, frozenset())
    runner.rehearse()
    for number, step in enumerate(plan.steps, 1):
        if step.row == "chain" and not isinstance(step.stage, Evaluate):
            runner.perform(step, number)
    first = torch.cat([labels for kind, labels, _ in shown if kind == "hidden_states"])
    second = torch.cat([labels for kind, labels, _ in shown if kind == "soft_targets"])
    assert len(first) == len(second) == 6 * 16
    assert (first == NO_LABEL).all()
    assert (second != NO_LABEL).all()
    made = {name: watcher.results[name].artifact for name in ("general", "finetune")}
    facts = {name: artifact.facts["transfer"] for name, artifact in made.items() if artifact is not None}
    unlabelled = 40 + 64  # the fixture's own, and those above
    assert facts["general"]["samples"] == unlabelled
    assert facts["finetune"]["samples"] == facts["finetune"]["of"] - unlabelled
