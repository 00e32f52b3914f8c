"""Teachers made of the student: averages and snapshots by hand, killed and resumed, refused."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from edgeforge.architectures.resnet import Resnet
from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.core.stage import Job
from edgeforge.losses.hard_labels import HardLabels
from edgeforge.losses.soft_targets import SoftTargets
from edgeforge.models.config import Config
from edgeforge.pipeline import Pipeline
from edgeforge.plan import Plan, build
from edgeforge.store import CHECKPOINT
from edgeforge.tasks.image_classification import Augment, ImageClassification
from edgeforge.teachers import OpenTeacher, Teacher
from edgeforge.teachers.ema import Ema
from edgeforge.teachers.snapshots import Snapshots
from edgeforge.training import checkpoint, loop
from edgeforge.training.objective import Trainee
from edgeforge.training.recipe import Recipe

CPU = torch.device("cpu")
TASK = ImageClassification(augment=Augment(crop=1))
RESNET = Resnet(embedding_size=8, hidden_sizes=(8, 16), depths=(1, 1), layer_type="basic")
BOTH = (HardLabels(weight=0.5), SoftTargets(temperature=1, weight=0.5))
WEIGHT = "classifier.1.weight"


class Silent:
    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        raise AssertionError(message)


class Stopped(Exception):
    pass


def opened(spec: Teacher) -> OpenTeacher:
    return spec.open({}, CPU, TASK.open())


def train(folder: Path, recipe: Recipe, teacher: OpenTeacher | None, losses: Any = BOTH) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    student = Config(architecture=RESNET).build(TASK, TASK.open().interface)
    job = Job(TASK, folder, 0, functools.cache(Accelerator), Silent())
    loop.fit(Trainee(student, losses, teacher), recipe, data=TASK.open(), job=job, split="transfer")
    return {name: value.clone() for name, value in student.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Pupil(nn.Module):
    """A tied weight, a frozen one, and a counter."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.frozen = (nn.Linear(1, 1, bias=False) for _ in range(3))
        self.second.weight = self.first.weight
        self.frozen.requires_grad_(False)
        self.register_buffer("seen", torch.tensor(0))
        self.become(0.0)

    def become(self, value: float) -> None:
        with torch.no_grad():
            self.seen.add_(1)
            self.first.weight.fill_(value)
            self.frozen.weight.fill_(value)


# -- by hand


def test_the_average_after_three_steps() -> None:
    """decay 0.6: 1/2 * 0 + 1/2 * 1 = 0.5; 0.6 * 0.5 + 0.4 * 2 = 1.1; 0.6 * 1.1 + 0.4 * 4 = 2.26."""
    pupil, teacher = Pupil(), opened(Ema(decay=0.6))
    teacher.begin(pupil)
    for step, (weight, expected) in enumerate(((1.0, 0.5), (2.0, 1.1), (4.0, 2.26)), 1):
        pupil.become(weight)
        teacher.follow(pupil, step, ends_cycle=False)
        assert teacher.state().keys() == {"first.weight", "seen"}, "tied weights once, frozen ones never"
        assert float(teacher.state()["first.weight"]) == pytest.approx(expected)
    assert int(teacher.state()["seen"]) == 4, "what counts is copied"
    assert float(teacher._model.second.weight) == pytest.approx(2.26)  # type: ignore[attr-defined]
    assert float(teacher._model.frozen.weight) == 0  # type: ignore[attr-defined]
    assert teacher.teaches


def test_a_snapshot_is_taken_where_a_cycle_ends_and_stays() -> None:
    pupil, teacher = Pupil(), opened(Snapshots())
    teacher.begin(pupil)
    taken = []
    for step, ends in enumerate((False, True, False, True, False), 1):
        pupil.become(float(step))
        teacher.follow(pupil, step, ends_cycle=ends)
        taken.append(float(teacher.state()["first.weight"]) if teacher.teaches else None)
    assert taken == [None, 2, 2, 4, 4]


def test_another_students_state_is_refused() -> None:
    teacher = opened(Ema())
    teacher.begin(Pupil())
    with pytest.raises(RuntimeError, match="not this teacher's state"):
        teacher.restore({"first.weight": torch.zeros(1, 1)})


# -- in the loop


def test_cycles_run_the_schedule_again() -> None:
    """7 steps in 3 cycles: 2, 2 and 3."""
    recipe, parts = Recipe(steps=7, cycles=3, warmup=0.5), (2, 2, 3)
    single = Recipe(steps=3, warmup=0.5)
    expected = [loop._rate(single, step, total) for total in parts for step in range(total)]
    assert [loop._rate(recipe, step, 7) for step in range(7)] == expected
    assert expected[:5] == pytest.approx([1, 1, 1, 1, 0.5]), "no step of two is left to fall; two of three rise"
    assert [step + 1 for step in range(7) if loop._cycle(recipe, step, 7).stop == step + 1] == [2, 4, 7]


class Watched(OpenTeacher):
    """Another teacher, and what it saw and was after every step."""

    def __init__(self, inner: OpenTeacher) -> None:
        self.inner = inner
        self.student: list[torch.Tensor] = []
        self.own: list[torch.Tensor | None] = []
        self.asked = 0

    @property
    def teaches(self) -> bool:
        return self.inner.teaches

    def __call__(self, batch: Any, outputs: frozenset[str]) -> Any:
        self.asked += 1
        answer = self.inner(batch, outputs)
        assert not answer.logits.requires_grad
        return answer

    def begin(self, student: PreTrainedModel) -> None:
        self.student.append(student.state_dict()[WEIGHT].clone())
        self.inner.begin(student)

    def follow(self, student: PreTrainedModel, step: int, *, ends_cycle: bool) -> None:
        assert step == len(self.student)
        self.inner.follow(student, step, ends_cycle=ends_cycle)
        self.student.append(student.state_dict()[WEIGHT].clone())
        self.own.append(self.inner.state()[WEIGHT].clone() if self.inner.teaches else None)

    def state(self) -> Any:
        return self.inner.state()


def test_the_loop_lets_the_average_follow_every_step(tmp_path: Path) -> None:
    teacher = Watched(opened(Ema(decay=0.7)))
    train(tmp_path, Recipe(steps=6, batch_size=16, learning_rate=1e-2), teacher)
    expected = teacher.student[0].double()
    for step, (weight, own) in enumerate(zip(teacher.student[1:], teacher.own, strict=True), 1):
        decay = min(1 - 1 / (step + 1), 0.7)
        expected = decay * expected + (1 - decay) * weight.double()
        assert own is not None
        torch.testing.assert_close(own.double(), expected, rtol=1e-4, atol=1e-6)
    assert teacher.asked == 7, "once for the shapes of what losses keep, then in every step"
    assert not torch.equal(teacher.student[-1], teacher.student[-2])


def test_the_first_cycle_has_no_teacher_and_the_next_has_its_end(tmp_path: Path) -> None:
    teacher = Watched(opened(Snapshots()))
    recipe = Recipe(steps=7, cycles=3, batch_size=16, learning_rate=1e-2)
    train(tmp_path / "taught", recipe, teacher)
    assert teacher.asked == 1 + 5
    seen = teacher.student
    for own, taken in zip(teacher.own, (None, 2, 2, 4, 4, 4, 7), strict=True):
        assert own is None if taken is None else own is not None and torch.equal(own, seen[taken])
    alone = Watched(opened(Snapshots()))
    train(tmp_path / "alone", recipe, alone, losses=(HardLabels(weight=0.5),))
    assert alone.student == [], "a teacher that no loss asks follows nobody"
    labels = Watched(opened(Snapshots()))
    train(tmp_path / "labels", recipe, labels, losses=(HardLabels(weight=0.5), SoftTargets(weight=1e-9)))
    assert torch.equal(labels.student[2], seen[2]), "in the first cycle labels alone"
    assert not torch.equal(labels.student[4], seen[4])


@pytest.mark.parametrize(
    ("spec", "stops"), [(Ema(decay=0.9), (3, 17)), (Snapshots(), (13, 27))], ids=["ema", "snapshots"]
)
def test_killed_and_resumed_it_ends_in_the_same_bits(
    spec: Teacher, stops: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cycle ends at step 15, and checkpoints are written at 10 and 20."""
    recipe = Recipe(steps=30, cycles=2, batch_size=32, learning_rate=5e-3, checkpoint_seconds=0)
    whole = train(tmp_path / "whole", recipe, opened(spec))
    step_of = loop._Training._step
    for stop in stops:

        def stops_there(self: Any, step: int, stop: int = stop) -> torch.Tensor:
            if step == stop:
                raise Stopped
            return step_of(self, step)

        monkeypatch.setattr(loop._Training, "_step", stops_there)
        with pytest.raises(Stopped):
            train(tmp_path / "cut", recipe, opened(spec))
    monkeypatch.setattr(loop._Training, "_step", step_of)
    found = checkpoint.latest(tmp_path / "cut" / CHECKPOINT)
    assert found is not None
    assert WEIGHT in checkpoint.read(found, "teacher")
    assert equal(train(tmp_path / "cut", recipe, opened(spec)), whole)


def test_a_lost_average_would_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: a teacher that begins anew leads elsewhere."""
    recipe = Recipe(steps=14, batch_size=32, learning_rate=5e-3, checkpoint_seconds=0)
    whole = train(tmp_path / "whole", recipe, opened(Ema(decay=0.9)))
    step_of = loop._Training._step

    def stops(self: Any, step: int) -> torch.Tensor:
        if step == 12:
            raise Stopped
        return step_of(self, step)

    monkeypatch.setattr(loop._Training, "_step", stops)
    with pytest.raises(Stopped):
        train(tmp_path / "cut", recipe, opened(Ema(decay=0.9)))
    monkeypatch.setattr(loop._Training, "_step", step_of)
    forgetful = opened(Ema(decay=0.9))
    forgetful.restore = lambda state: None  # type: ignore[method-assign]
    assert not equal(train(tmp_path / "cut", recipe, forgetful), whole)


# -- the plan


def plan_of(stage: dict[str, Any]) -> Plan:
    model = {"kind": "config", "architecture": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16]}
    stages = [{"kind": "train", "steps": 3}, {"kind": "finetune", "steps": 3, **stage}]
    said = {"name": "test", "task": "image_classification", "model": {**model, "depths": [1, 1]}, "stages": stages}
    return build(Pipeline.model_validate(said))


LOSSES = ["hard_labels", "soft_targets"]


def test_no_artifact_is_read_and_options_are_part_of_the_key() -> None:
    keys = set()
    for teacher in ("ema", {"kind": "ema", "decay": 0.9}, "snapshots"):
        step = plan_of({"teacher": teacher, "losses": LOSSES, "cycles": 2}).step("finetune")
        assert step.inputs == {"model": "train"}
        keys.add(step.key)
    assert len(keys) == 3
    distill = plan_of({"kind": "distill", "teacher": "ema", "losses": LOSSES}).step("distill")
    assert distill.inputs == {"model": "train"}, "the student is made from the chain's model"


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"teacher": "ema", "losses": ["soft_targets"]}, "nothing says what is right\n.*add `- hard_labels`"),
        (
            {"teacher": "ema", "losses": ["soft_targets", {"kind": "hard_labels", "weight": 0}]},
            "nothing says what is right",
        ),
        ({"teacher": "ema", "losses": ["hard_labels"]}, "no loss asks for one\n.*soft_targets"),
        ({"kind": "distill", "teacher": "ema", "losses": ["hard_labels"]}, "no loss asks for one\n.*soft_targets"),
        (
            {"teacher": "ema", "losses": LOSSES, "on_policy": {}},
            "what the student writes always seems right\n.*teacher: model",
        ),
        ({"teacher": "snapshots", "losses": LOSSES}, "where a cycle ends.*\n.*cycles: 2"),
        (
            {"teacher": "snapshots", "losses": [*LOSSES, "hidden_states"], "cycles": 2},
            "`hidden_states` reads the teacher's layers, and `snapshots` have no teacher in the first cycle",
        ),
        ({"kind": "generate", "teacher": "ema"}, "a `ema` teacher cannot write"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(IncompatiblePlanError, match=message):
        if stage.get("kind") == "generate":
            build(Pipeline.model_validate({**plan_of({}).pipeline.model_dump(mode="json"), "stages": [stage]}))
        plan_of(stage)


def test_layers_of_the_average_may_be_compared() -> None:
    plan_of({"teacher": "ema", "losses": ["hard_labels", "hidden_states"]})
