"""Learners that teach each other: against the papers' formulas worked out in numpy, and what no gradient reaches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.utils import ModelOutput

from edgeforge.core.task import NO_LABEL
from edgeforge.losses import Loss, Training
from edgeforge.losses.hard_labels import HardLabels
from edgeforge.losses.hidden_states import HiddenStates
from edgeforge.losses.soft_targets import SoftTargets
from edgeforge.models.exits import new_head
from edgeforge.training.branches import Branches
from edgeforge.training.peers import Cohort, Peers

TRAINING = Training(samples=8, seed=0)
LABELS = [1, 0, NO_LABEL]
INPUTS = np.array([[1.0, -0.5], [0.25, 2.0], [-1.0, 0.5]])
WEIGHTS = [
    np.array([[0.5, -1.0], [1.5, 0.25], [0.0, 0.75]]),
    np.array([[-0.5, 0.5], [0.75, -0.25], [1.0, 1.0]]),
    np.array([[2.0, 0.0], [-1.0, 0.5], [0.25, -0.75]]),
]


class Linear(nn.Module):
    """Logits = W x, as a model answers."""

    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32))

    def can_generate(self) -> bool:
        return False

    def forward(self, x: torch.Tensor, return_dict: bool = True) -> ModelOutput:
        return ModelOutput(logits=x @ self.weight.T)


def batch() -> dict[str, torch.Tensor]:
    return {
        "x": torch.tensor(INPUTS, dtype=torch.float32),
        "labels": torch.tensor(LABELS),
        "rows": torch.arange(3),
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def cross_entropy(weight: np.ndarray) -> float:
    """Over the samples that have a label."""
    probabilities = softmax(INPUTS @ weight.T)
    return float(-np.mean([np.log(probabilities[row, label]) for row, label in enumerate(LABELS) if label >= 0]))


def divergence(theirs: np.ndarray, ours: np.ndarray, temperature: float = 1.0) -> float:
    """KL(p_theirs || p_ours) of the softened answers, over all samples."""
    p, q = softmax(INPUTS @ theirs.T / temperature), softmax(INPUTS @ ours.T / temperature)
    return float(np.mean((p * np.log(p / q)).sum(axis=1)))


def cohort(count: int, *losses: Loss) -> Peers:
    members = [Linear(weight) for weight in WEIGHTS[:count]]
    others = [[other for other in range(count) if other != member] for member in range(count)]
    trainee = Peers(Cohort(members), losses or (HardLabels(), SoftTargets(temperature=1)), teachers=others, chosen=[0])
    trainee.make_loss_modules(batch(), TRAINING)
    return trainee


def test_two_students_have_the_papers_loss() -> None:
    one, two = WEIGHTS[:2]
    expected = cross_entropy(one) + divergence(two, one) + cross_entropy(two) + divergence(one, two)
    assert float(cohort(2)(batch(), None)) == pytest.approx(expected, rel=1e-6)


def test_of_several_others_the_mean_teaches() -> None:
    one, two, three = WEIGHTS
    expected = cross_entropy(one) + (divergence(two, one) + divergence(three, one)) / 2
    expected += cross_entropy(two) + (divergence(one, two) + divergence(three, two)) / 2
    expected += cross_entropy(three) + (divergence(one, three) + divergence(two, three)) / 2
    assert float(cohort(3)(batch(), None)) == pytest.approx(expected, rel=1e-6)


def test_weights_and_temperature_are_the_losses_own() -> None:
    one, two = WEIGHTS[:2]
    found = float(cohort(2, HardLabels(weight=0.3), SoftTargets(weight=0.7, temperature=2))(batch(), None))
    between = 4 * (divergence(two, one, 2) + divergence(one, two, 2))
    assert found == pytest.approx(0.3 * (cross_entropy(one) + cross_entropy(two)) + 0.7 * between, rel=1e-6)


def test_no_gradient_flows_into_an_answer_that_teaches() -> None:
    """Each student's gradient is that of its own loss with the other's probabilities as numbers: softmax - target."""
    trainee = cohort(2)
    trainee(batch(), None).backward()
    for member, (ours, theirs) in enumerate(((WEIGHTS[0], WEIGHTS[1]), (WEIGHTS[1], WEIGHTS[0]))):
        own, taught = softmax(INPUTS @ ours.T), softmax(INPUTS @ theirs.T)
        slope = (own - taught) / 3
        for row, label in enumerate(LABELS):
            if label >= 0:
                slope[row] += (own[row] - np.eye(3)[label]) / 2
        found = trainee.student.members[member].weight.grad
        torch.testing.assert_close(found.double(), torch.tensor(slope.T @ INPUTS), rtol=1e-5, atol=1e-6)


def test_only_the_chosen_are_validated() -> None:
    members = [Linear(weight) for weight in WEIGHTS]
    trainee = Peers(Cohort(members), (HardLabels(),), teachers=[[], [], []], chosen=[2, 1])
    asked = {"x": batch()["x"]}
    found = [answer(asked) for answer in trainee.answering()]
    assert torch.equal(found[0], members[2](**asked).logits)
    assert torch.equal(found[1], members[1](**asked).logits)
    assert len(found) == 2


# -- exits of one model


def branches() -> Branches:
    torch.manual_seed(0)
    config = ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[6, 8], depths=[2, 1], layer_type="basic", num_labels=3
    )
    model = ResNetForImageClassification(config)
    return Branches(model, {block: new_head(model, block + 1) for block in (0, 1)})


def images() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {"pixel_values": torch.randn(3, 1, 16, 16), "labels": torch.tensor(LABELS), "rows": torch.arange(3)}


def taught(learners: Branches, *losses: Loss) -> Peers:
    trainee = Peers(learners, losses, teachers=[[2], [2], []], chosen=[2])
    torch.manual_seed(2)
    trainee.make_loss_modules(images(), TRAINING)
    return trainee.eval()


def test_exits_have_the_papers_loss() -> None:
    """(1 - alpha) * cross entropy of all three + alpha * KL(deepest || exit) of the two shallow ones."""
    learners = branches().eval()
    found = float(taught(learners, HardLabels(weight=0.9), SoftTargets(weight=0.1, temperature=3))(images(), None))
    with torch.no_grad():
        logits = [
            answer.logits.double().numpy()
            for answer in learners.answers({"pixel_values": images()["pixel_values"]}, frozenset())
        ]
    labelled = [(row, label) for row, label in enumerate(LABELS) if label >= 0]
    hard = sum(-np.mean([np.log(softmax(one)[row, label]) for row, label in labelled]) for one in logits)
    deepest = softmax(logits[2] / 3)
    soft = sum(np.mean((deepest * np.log(deepest / softmax(one / 3))).sum(axis=1)) for one in logits[:2])
    assert found == pytest.approx(0.9 * hard + 0.1 * 9 * soft, rel=1e-5)
    assert soft > 1e-4


def test_the_deepest_exit_learns_from_labels_alone() -> None:
    def gradient(*losses: Loss) -> torch.Tensor:
        learners = branches()
        taught(learners, *losses)(images(), None).backward()
        found: Any = learners.model.classifier[1].weight.grad
        return found

    assert torch.equal(gradient(HardLabels()), gradient(HardLabels(), SoftTargets(weight=5)))


def test_the_hint_compares_what_blocks_put_out() -> None:
    learners = branches().eval()
    trainee = taught(learners, HardLabels(), HiddenStates(weight=2))
    # Both shallow exits are 6 channels wide and the last block is 8: a projection each.
    assert sorted(trainee.loss_modules) == ["0-1-2", "1-1-2"]
    found = float(trainee(images(), None)) - float(taught(learners, HardLabels())(images(), None))
    with torch.no_grad():
        states = [
            answer.hidden_states[0]
            for answer in learners.answers({"pixel_values": images()["pixel_values"]}, frozenset())
        ]
        expected = 0.0
        for position in (0, 1):
            (projection,) = trainee.loss_modules[f"{position}-1-2"].children()
            pooled = nn.functional.adaptive_avg_pool2d(states[position], states[2].shape[-2:])
            expected += float((projection(pooled) - states[2]).square().mean())
    assert found == pytest.approx(2 * expected, rel=1e-4)
