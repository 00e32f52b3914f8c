"""The mutual stage: what it keeps and says, killed and resumed, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.core.task import model_inputs
from edgeforge.models import loading
from edgeforge.stages.mutual import Mutual
from edgeforge.training import loop

if TYPE_CHECKING:
    from tests.conftest import Case, Digits, Mails, Tales

BRIEF = {"steps": 24, "batch_size": 16, "learning_rate": 3e-3}
HALF = {"kind": "width", "multiple": 0.5}


class Stopped(Exception):
    pass


def mutual(**said: Any) -> Mutual:
    return Mutual.model_validate({"kind": "mutual", **BRIEF, **said})


def run(stage: Mutual, bench: Digits, family: str, folder: Path) -> Mapping[str, Any]:
    model = bench.torch(family)
    return stage.run({"model": model}, replace(bench.job(folder), model=model.path))


def right(folder: Path, bench: Digits) -> float:
    """The share of the validation split that a written classifier answers rightly."""
    model, data = loading.load(folder), bench.data
    batch = data.batch("validation", range(data.size("validation")))
    with torch.no_grad():
        found = model(**model_inputs(batch)).logits.argmax(dim=1)
    return float((found == batch["labels"]).double().mean())


def test_the_best_goes_on_and_every_member_is_reported(digits: Digits, tmp_path: Path) -> None:
    stage = mutual(
        students=["copy", HALF, {"kind": "width", "multiple": 1}], keep="best", epochs=2, steps=None, batch_size=64
    )
    facts = run(stage, digits, "resnet", tmp_path)
    members = facts["members"]
    assert [row["student"] for row in members] == ["copy", "width", "width"]
    assert all(row["metric"] == "accuracy" for row in members)
    assert members[0]["before"] == right(digits.torch("resnet").path, digits)
    assert members[0]["after"] > 0.5
    assert members[0]["params"] == members[2]["params"] > 3 * members[1]["params"]
    best = max(row["after"] for row in members)
    assert members[facts["used"]]["after"] == best == right(tmp_path, digits)
    # Of the epochs, too, the one whose best student was best.
    assert best == max(facts["history"]["validation"])
    assert facts["params"] == members[facts["used"]]["params"]


def test_the_first_goes_on_where_that_is_said(digits: Digits, tmp_path: Path) -> None:
    facts = run(mutual(students=[HALF, "copy"], use="first"), digits, "resnet", tmp_path)
    assert facts["used"] == 0
    assert facts["params"] == facts["members"][0]["params"] < facts["members"][1]["params"]
    assert facts["members"][0]["after"] == right(tmp_path, digits)


def interrupted(stage: Mutual, bench: Digits, family: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stage's facts after it stopped at step 15 and was run again."""
    step_of = loop._Training._step

    def stops(self: Any, step: int) -> torch.Tensor:
        if step == 15:
            raise Stopped
        return step_of(self, step)

    monkeypatch.setattr(loop._Training, "_step", stops)
    with pytest.raises(Stopped):
        run(stage, bench, family, folder)
    monkeypatch.setattr(loop._Training, "_step", step_of)
    taken: list[int] = []

    def counts(self: Any, step: int) -> torch.Tensor:
        taken.append(step)
        return step_of(self, step)

    monkeypatch.setattr(loop._Training, "_step", counts)
    facts = run(stage, bench, family, folder)
    monkeypatch.setattr(loop._Training, "_step", step_of)
    assert 0 < taken[0] < 15  # from a checkpoint
    assert taken == list(range(taken[0], 24))
    return facts


def check_resumes(stage: Mutual, bench: Digits, family: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    whole = run(stage, bench, family, folder / "whole")
    again = interrupted(stage, bench, family, folder / "cut", monkeypatch)
    assert whole == again
    ours, theirs = (load_file(folder / name / "model.safetensors") for name in ("whole", "cut"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    return whole


@pytest.mark.parametrize("case", ["resnet", "bert"], indirect=True)
def test_killed_and_resumed_it_ends_in_the_same_bits(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_resumes(
        mutual(students=["copy", HALF], ema=0.9, checkpoint_seconds=0), case.bench, case.family, tmp_path, monkeypatch
    )


def test_language_models_teach_each_other(tales: Tales, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    students = ["copy", {"kind": "layers", "keep": [0, 2]}]
    facts = check_resumes(mutual(students=students, checkpoint_seconds=0), tales, "llama", tmp_path, monkeypatch)
    metric = facts["members"][0]["metric"]
    assert metric == "perplexity"
    # It falls, and the best has the least.
    assert all(row["after"] < row["before"] for row in facts["members"])
    assert facts["members"][facts["used"]]["after"] == min(row["after"] for row in facts["members"])
    assert (tmp_path / "whole" / "tokenizer.json").exists()


def test_without_labels_students_come_nearer_to_each_other(digits: Digits, tmp_path: Path) -> None:
    def distance(steps: int) -> float:
        stage = mutual(students=[HALF, HALF], losses=["soft_targets"], steps=steps)
        facts = run(stage, digits, "resnet", tmp_path / str(steps))
        return float(facts["history"]["loss"][-1])

    assert 0 < distance(24) < 0.8 * distance(1)


def test_samples_without_a_label_teach_too(mails: Mails, tmp_path: Path) -> None:
    facts = run(mutual(students=["copy", HALF], steps=None, epochs=1), mails, "distilbert", tmp_path)
    assert mails.data.size("transfer") // 16 > mails.data.size("train") // 16
    assert facts["steps"] == mails.data.size("transfer") // 16


# -- refusals


def test_one_student_has_nobody_to_learn_from() -> None:
    with pytest.raises(ValidationError, match="students teach each other: name two or more"):
        mutual(students=["copy"])


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"losses": ["hard_labels"]}, "no loss asks for what the others answer"),
        ({"losses": ["hard_labels", {"kind": "soft_targets", "weight": 0}]}, "no loss asks"),
        ({"losses": ["soft_targets", "hidden_states"]}, "`hidden_states` reads layers"),
        ({"lora": {}}, "adapters change one model's weights"),
    ],
)
def test_what_cannot_work_is_refused_from_the_spec(said: dict[str, Any], reason: str) -> None:
    with pytest.raises(IncompatiblePlanError, match=reason):
        mutual(**said).check()


def test_students_with_the_same_weights_are_refused_before_any_work(case: Case) -> None:
    stage = mutual(students=[HALF, "copy", "copy"])
    with pytest.raises(IncompatiblePlanError, match="students 1 and 2 begin with the same weights") as caught:
        stage.rehearse(case.model(), case.bench.task)
    assert caught.value.where == "students"


def test_a_rehearsal_gives_the_first_students_shape(case: Case) -> None:
    stage = mutual(students=["copy", {"kind": "width", "multiple": 1}])
    stage.check()
    whole = case.model()
    shape = {name: value.shape for name, value in stage.rehearse(whole, case.bench.task).named_parameters()}
    assert shape == {name: value.shape for name, value in whole.named_parameters()}
