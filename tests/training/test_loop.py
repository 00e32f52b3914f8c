"""The training loop: against a plain torch loop, interrupted anywhere, averaged, split over pieces."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from edgeforge.architectures.resnet import Resnet
from edgeforge.architectures.vit import Vit
from edgeforge.core.errors import ConfigurationError
from edgeforge.core.seeds import derive
from edgeforge.core.stage import Job
from edgeforge.core.task import model_inputs
from edgeforge.losses import Loss
from edgeforge.losses.hard_labels import HardLabels
from edgeforge.losses.hidden_states import HiddenStates
from edgeforge.losses.soft_targets import SoftTargets
from edgeforge.models.config import Config
from edgeforge.models.outputs import run
from edgeforge.store import CHECKPOINT
from edgeforge.tasks.image_classification import Augment, ImageClassification
from edgeforge.teachers import OpenTeacher
from edgeforge.training import loop
from edgeforge.training.objective import Trainee
from edgeforge.training.recipe import Recipe

TASK = ImageClassification(augment=Augment(crop=1))
RESNET = Resnet(embedding_size=8, hidden_sizes=(8, 16), depths=(1, 1), layer_type="basic")
VIT = Vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, patch_size=4)


class Silent:
    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        raise AssertionError(message)


class Fixed(OpenTeacher):
    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()

    def __call__(self, batch: Any, outputs: Any) -> Any:
        with torch.no_grad():
            return run(self.model, model_inputs(batch), outputs)


class Stopped(Exception):
    pass


def new_model(architecture: Resnet | Vit, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return Config(architecture=architecture).build(TASK, TASK.open().interface)


def train(
    folder: Path,
    recipe: Recipe,
    *,
    architecture: Resnet | Vit = RESNET,
    losses: tuple[Loss, ...] = (HardLabels(),),
    seed: int = 0,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    model = new_model(architecture)
    needs_teacher = any(loss.needs_teacher for loss in losses)
    teacher = Fixed(new_model(architecture, seed=1)) if needs_teacher else None
    job = Job(TASK, folder, seed, functools.cache(Accelerator), Silent())
    facts = loop.fit(Trainee(model, losses, teacher), recipe, data=TASK.open(), job=job)
    return {name: value.clone() for name, value in model.state_dict().items()}, facts


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_same_weights_as_a_plain_torch_loop(tmp_path: Path, optimizer: str) -> None:
    recipe = Recipe(steps=12, batch_size=32, optimizer=optimizer, learning_rate=0.01, precision="float32", warmup=0.25)
    trained, _ = train(tmp_path, recipe)

    model = new_model(RESNET).train()
    data = TASK.open()
    weights = [value for value in model.parameters() if value.dim() > 1]
    others = [value for value in model.parameters() if value.dim() <= 1]
    groups = [{"params": weights, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    plain: torch.optim.Optimizer = (
        torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True)
        if optimizer == "sgd"
        else torch.optim.AdamW(groups, lr=1.0)
    )
    order = torch.randperm(data.size("train"), generator=torch.Generator().manual_seed(derive(0, "order", 0))).tolist()
    for step in range(12):
        rate = (step + 1) / 3 if step < 3 else 0.5 * (1 + math.cos(math.pi * (step - 3) / 9))
        for group in plain.param_groups:
            group["lr"] = 0.01 * rate
        batch = data.batch("train", order[32 * step : 32 * step + 32], augment_seed=derive(0, "augment", 0))
        logits = model(pixel_values=batch["pixel_values"]).logits
        plain.zero_grad()
        torch.nn.functional.cross_entropy(logits, batch["labels"]).backward()
        plain.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=2e-3, atol=2e-4, msg=name)


def test_every_seed_gives_its_own_result_and_always_the_same(tmp_path: Path) -> None:
    recipe = Recipe(steps=6, batch_size=32)
    first, _ = train(tmp_path / "a", recipe)
    again, _ = train(tmp_path / "b", recipe)
    other, _ = train(tmp_path / "c", recipe, seed=1)
    assert equal(first, again)
    assert not equal(first, other)


@pytest.mark.parametrize("stop_at", [1, 11, 47, 51, 69])
def test_interrupted_anywhere_it_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    recipe = Recipe(epochs=3, batch_size=64, ema=0.9, keep="best", clip_norm=1.0, checkpoint_seconds=0)
    losses = (HardLabels(weight=0.3), SoftTargets(weight=0.5), HiddenStates(weight=0.2))
    whole, facts = train(tmp_path / "whole", recipe, losses=losses, architecture=VIT)
    assert facts["steps"] > stop_at or stop_at == 69

    step_of = loop._Training._step
    if stop_at < facts["steps"]:

        def stops(self: Any, step: int) -> torch.Tensor:
            if step == stop_at:
                raise Stopped
            return step_of(self, step)

        monkeypatch.setattr(loop._Training, "_step", stops)
        with pytest.raises(Stopped):
            train(tmp_path / "cut", recipe, losses=losses, architecture=VIT)
        monkeypatch.setattr(loop._Training, "_step", step_of)
    went_on, facts_after = train(tmp_path / "cut", recipe, losses=losses, architecture=VIT)
    assert equal(whole, went_on)
    assert facts == facts_after


def test_going_on_does_not_start_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(steps=40, batch_size=32, checkpoint_seconds=0)
    taken: list[int] = []
    step_of = loop._Training._step

    def counts(self: Any, step: int) -> torch.Tensor:
        if step == 25 and step not in taken:
            taken.append(step)
            raise Stopped
        taken.append(step)
        return step_of(self, step)

    monkeypatch.setattr(loop._Training, "_step", counts)
    with pytest.raises(Stopped):
        train(tmp_path, recipe)
    assert [path.name for path in (tmp_path / CHECKPOINT).iterdir()] == ["step-000000020"]
    taken_before = len(taken)
    train(tmp_path, recipe)
    assert taken[taken_before:] == list(range(20, 40))


def test_pieces_of_a_batch_add_up(tmp_path: Path) -> None:
    # No BatchNorm here: its statistics are per piece by nature.
    whole, _ = train(tmp_path / "a", Recipe(steps=5, batch_size=32, precision="float32"), architecture=VIT)
    pieces, _ = train(
        tmp_path / "b", Recipe(steps=5, batch_size=32, accumulate=4, precision="float32"), architecture=VIT
    )
    for name, value in whole.items():
        torch.testing.assert_close(pieces[name], value, rtol=1e-3, atol=5e-5, msg=name)


def test_the_running_average_is_the_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, torch.Tensor]] = [{name: value.clone() for name, value in new_model(VIT).state_dict().items()}]
    average = loop._Training._average

    def watch(self: Any) -> None:
        seen.append({name: value.clone() for name, value in self.trainee.student.state_dict().items()})
        average(self)

    monkeypatch.setattr(loop._Training, "_average", watch)
    kept, _ = train(tmp_path, Recipe(steps=30, batch_size=16, ema=0.8), architecture=VIT)
    name = "classifier.weight"
    expected = seen[0][name].double()
    for step, weights in enumerate(seen[1:]):
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights[name].double()
    torch.testing.assert_close(kept[name].double(), expected, rtol=1e-4, atol=1e-6)
    assert not torch.equal(kept[name], seen[-1][name])


def test_best_keeps_the_epoch_with_the_best_validation(tmp_path: Path) -> None:
    _, facts = train(tmp_path, Recipe(epochs=4, batch_size=64, learning_rate=3e-3, keep="best"))
    scores = facts["history"]["validation"]
    assert len(scores) == 4
    assert facts["kept_step"] == (scores.index(max(scores)) + 1) * (facts["steps"] // 4)


def test_training_learns(tmp_path: Path) -> None:
    _, facts = train(tmp_path, Recipe(epochs=8, batch_size=32, learning_rate=1e-2, keep="best"))
    assert max(facts["history"]["validation"]) > 0.8
    assert facts["history"]["loss"][-1] < 0.5 * facts["history"]["loss"][0]


def test_a_loss_that_is_no_number_stops_the_stage(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no longer a number") as caught:
        train(tmp_path, Recipe(steps=60, batch_size=32, learning_rate=1e12, optimizer="sgd", precision="float32"))
    assert "learning_rate" in (caught.value.remedy or "")


def test_projections_are_trained_and_not_kept(tmp_path: Path) -> None:
    trained, _ = train(tmp_path, Recipe(steps=3, batch_size=16), losses=(HiddenStates(),), architecture=VIT)
    assert trained.keys() == new_model(VIT).state_dict().keys()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 1, "steps": 1}, "not both"),
        ({"batch_size": 10, "accumulate": 3}, "divide"),
        ({"epochs": 0}, "greater than"),
        ({"learning_rate": 0}, "greater than"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


def test_length_in_steps_and_epochs() -> None:
    assert Recipe(steps=7).total_steps(1000) == 7
    assert Recipe(epochs=3, batch_size=100).total_steps(1050) == 30
    assert Recipe(epochs=2, batch_size=100).total_steps(5) == 2
    assert Recipe().total_steps(1280) == 50
