"""soft_targets, hard_labels, decoupled and dist against the papers' formulas, written again in NumPy and SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import pearsonr
from transformers.modeling_outputs import ImageClassifierOutput

from edgeforge.core.errors import ModelError
from edgeforge.core.task import NO_LABEL
from edgeforge.losses import Loss
from edgeforge.losses.decoupled import Decoupled
from edgeforge.losses.dist import Dist
from edgeforge.losses.hard_labels import HardLabels
from edgeforge.losses.soft_targets import SoftTargets

RNG = np.random.default_rng(0)
STUDENT = RNG.normal(scale=3, size=(6, 5))
TEACHER = RNG.normal(scale=3, size=(6, 5))
LABELS = np.array([0, 1, 2, 3, 4, 0])
WITH_TEACHER = [SoftTargets(), Decoupled(), Dist()]
by_kind = {"ids": lambda loss: loss.kind}


def outputs(logits: Any) -> ImageClassifierOutput:
    return ImageClassifierOutput(logits=torch.as_tensor(logits))


def value(
    loss: Loss, student: np.ndarray = STUDENT, teacher: np.ndarray = TEACHER, labels: np.ndarray = LABELS
) -> float:
    batch = {"labels": torch.as_tensor(labels)}
    return float(loss.compute(outputs(student), outputs(teacher), batch, None))


# -- the formulas


@pytest.mark.parametrize("temperature", [0.5, 1, 4, 20])
def test_soft_targets_is_the_scaled_divergence(temperature: float) -> None:
    p, q = softmax(TEACHER / temperature, axis=1), softmax(STUDENT / temperature, axis=1)
    expected = temperature**2 * rel_entr(p, q).sum(axis=1).mean()
    assert value(SoftTargets(temperature=temperature)) == pytest.approx(expected, rel=1e-4)


def test_soft_targets_by_hand() -> None:
    # Teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2).
    found = value(SoftTargets(temperature=1), np.zeros((1, 2)), np.log([[3.0, 1.0]]), np.array([0]))
    assert found == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), rel=1e-6)


def test_soft_targets_at_high_temperature_matches_logits() -> None:
    """Hinton et al., section 2.1: T^2 KL tends to |z - v|^2 / (2 N) for zero-mean logits (N classes)."""
    student = STUDENT - STUDENT.mean(axis=1, keepdims=True)
    teacher = TEACHER - TEACHER.mean(axis=1, keepdims=True)
    limit = ((student - teacher) ** 2).sum(axis=1).mean() / (2 * student.shape[1])
    assert value(SoftTargets(temperature=1000), student, teacher) == pytest.approx(limit, rel=2e-2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_hard_labels_is_cross_entropy(smoothing: float) -> None:
    logs = log_softmax(STUDENT, axis=1)
    target = np.full_like(logs, smoothing / logs.shape[1])
    target[np.arange(len(LABELS)), LABELS] += 1 - smoothing
    expected = -(target * logs).sum(axis=1).mean()
    assert value(HardLabels(label_smoothing=smoothing)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1, 8, 4), (1, 0, 1), (0, 1, 1), (2, 0.5, 0.7), (0, 0, 1)])
def test_decoupled_is_the_papers_formula(alpha: float, beta: float, temperature: float) -> None:
    expected = 0.0
    for z, v, label in zip(STUDENT / temperature, TEACHER / temperature, LABELS, strict=True):
        q, p = softmax(z), softmax(v)
        others = np.arange(len(z)) != label
        tckd = rel_entr([p[label], 1 - p[label]], [q[label], 1 - q[label]]).sum()
        nckd = rel_entr(p[others] / p[others].sum(), q[others] / q[others].sum()).sum()
        expected += (alpha * tckd + beta * nckd) * temperature**2 / len(LABELS)
    found = value(Decoupled(alpha=alpha, beta=beta, temperature=temperature))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_decoupled_with_the_teachers_doubt_is_soft_targets() -> None:
    """Zhao et al., eq. 7: KD = TCKD + (1 - p_target) NCKD; exact for one sample."""
    for student, teacher, label in zip(STUDENT, TEACHER, LABELS, strict=True):
        doubt = float(1 - softmax(teacher)[label])
        one = (student[None], teacher[None], np.array([label]))
        decoupled = value(Decoupled(alpha=1, beta=doubt, temperature=1), *one)
        assert decoupled == pytest.approx(value(SoftTargets(temperature=1), *one), rel=1e-4)


@pytest.mark.parametrize(("beta", "gamma", "temperature"), [(1, 1, 1), (2, 0, 4), (0, 2, 4), (0.3, 0.7, 2)])
def test_dist_is_the_papers_formula(beta: float, gamma: float, temperature: float) -> None:
    ours, theirs = softmax(STUDENT / temperature, axis=1), softmax(TEACHER / temperature, axis=1)
    inter = np.mean([1 - pearsonr(a, b).statistic for a, b in zip(ours, theirs, strict=True)])
    intra = np.mean([1 - pearsonr(a, b).statistic for a, b in zip(ours.T, theirs.T, strict=True)])
    expected = temperature**2 * (beta * inter + gamma * intra)
    assert value(Dist(beta=beta, gamma=gamma, temperature=temperature)) == pytest.approx(expected, rel=1e-4)


def test_dist_ignores_scale_and_offset_of_probabilities() -> None:
    """What sets it apart: a teacher that is sharper but ranks alike costs little; soft targets still pull."""
    sharper = np.log(softmax(TEACHER, axis=1) * 0.5 + 0.1)
    assert value(Dist(gamma=0), TEACHER, sharper) == pytest.approx(0, abs=1e-6)
    assert value(SoftTargets(temperature=1), TEACHER, sharper) > 0.01


# -- what holds for all of them


@pytest.mark.parametrize("loss", WITH_TEACHER, **by_kind)
def test_an_identical_student_costs_nothing(loss: Loss) -> None:
    assert value(loss, TEACHER, TEACHER) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("loss", WITH_TEACHER, **by_kind)
def test_another_student_costs_something(loss: Loss) -> None:
    assert value(loss) > 0.01


@pytest.mark.parametrize("loss", [*WITH_TEACHER, HardLabels()], **by_kind)
def test_the_batch_is_averaged(loss: Loss) -> None:
    twice = [np.concatenate([array, array]) for array in (STUDENT, TEACHER, LABELS)]
    assert value(loss, *twice) == pytest.approx(value(loss), rel=1e-5)


@pytest.mark.parametrize("loss", WITH_TEACHER, **by_kind)
def test_gradients_reach_the_student_only(loss: Loss) -> None:
    student = torch.tensor(STUDENT, requires_grad=True)
    teacher = torch.tensor(TEACHER, requires_grad=True)
    loss.compute(outputs(student), outputs(teacher), {"labels": torch.tensor(LABELS)}, None).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", WITH_TEACHER, **by_kind)
def test_following_the_gradient_makes_the_student_the_teacher(loss: Loss) -> None:
    student = torch.nn.Parameter(torch.tensor(STUDENT, dtype=torch.float32))
    optimizer = torch.optim.Adam([student], lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        loss.compute(outputs(student), outputs(TEACHER), {"labels": torch.tensor(LABELS)}, None).backward()
        optimizer.step()
    assert (student.detach().argmax(dim=1).numpy() == TEACHER.argmax(axis=1)).all()


EXTREMES = {
    "sure and wrong": ([[200.0, -200, 0]], [[-200.0, 200, 0]]),
    "sure and right": ([[200.0, -200, 0]], [[300.0, -300, 0]]),
    "indifferent": ([[0.0, 0, 0]], [[0.0, 0, 0]]),
    "equal rows": ([[1.0, 2, 3], [1, 2, 3]], [[3.0, 2, 1], [3, 2, 1]]),
}


@pytest.mark.parametrize("case", EXTREMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", [*WITH_TEACHER, HardLabels()], **by_kind)
def test_extreme_logits_of_any_precision_stay_finite(loss: Loss, dtype: torch.dtype, case: str) -> None:
    ours, theirs = EXTREMES[case]
    student = torch.tensor(ours, dtype=dtype, requires_grad=True)
    labels = torch.zeros(len(ours), dtype=torch.int64)
    found = loss.compute(outputs(student), outputs(torch.tensor(theirs, dtype=dtype)), {"labels": labels}, None)
    found.backward()
    assert found.dtype == torch.float32
    assert torch.isfinite(found)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("loss", WITH_TEACHER, **by_kind)
def test_half_precision_is_close_to_full(loss: Loss) -> None:
    half = [torch.tensor(array, dtype=torch.bfloat16) for array in (STUDENT, TEACHER)]
    rounded = [array.double().numpy() for array in half]
    found = loss.compute(outputs(half[0]), outputs(half[1]), {"labels": torch.tensor(LABELS)}, None)
    assert float(found) == pytest.approx(value(loss, *rounded), rel=1e-4)


@pytest.mark.parametrize("loss", WITH_TEACHER, **by_kind)
def test_two_classes_and_one_sample_work(loss: Loss) -> None:
    found = value(loss, np.array([[1.0, -1.0]]), np.array([[1.0, -1.0]]), np.array([1]))
    assert found == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", WITH_TEACHER, **by_kind)
def test_other_labels_than_the_teachers_are_refused(loss: Loss) -> None:
    with pytest.raises(ModelError, match=f"5 labels and the teacher 7.*{loss.kind}"):
        value(loss, STUDENT, RNG.normal(size=(6, 7)))


@pytest.mark.parametrize("wrong", ["0", "-1", ".nan", ".inf"])
@pytest.mark.parametrize("cls", [SoftTargets, Decoupled, Dist])
def test_temperature_must_be_positive_and_finite(cls: type[Loss], wrong: str) -> None:
    with pytest.raises(ValidationError):
        cls.model_validate({"kind": cls.model_fields["kind"].default, "temperature": float(wrong.lstrip("."))})


def test_weights_and_smoothing_have_limits() -> None:
    assert SoftTargets(weight=0).weight == 0
    for wrong in ({"weight": -1}, {"weight": float("inf")}, {"weight": float("nan")}):
        with pytest.raises(ValidationError):
            SoftTargets(**wrong)
    with pytest.raises(ValidationError):
        HardLabels(label_smoothing=1.0)


def test_only_hard_labels_do_without_a_teacher() -> None:
    assert not HardLabels.needs_teacher
    assert all(loss.needs_teacher for loss in WITH_TEACHER)


# -- samples without a label


SOME = np.where(np.arange(len(LABELS)) % 2, LABELS, NO_LABEL)  # every other sample has one


@pytest.mark.parametrize("loss", [HardLabels(), HardLabels(label_smoothing=0.2), Decoupled()], **by_kind)
def test_losses_on_labels_are_the_mean_over_labelled_samples(loss: Loss) -> None:
    labelled = SOME != NO_LABEL
    expected = value(loss, STUDENT[labelled], TEACHER[labelled], LABELS[labelled])
    assert value(loss, STUDENT, TEACHER, SOME) == pytest.approx(expected, rel=1e-6)
    assert expected != pytest.approx(value(loss), rel=1e-3)


@pytest.mark.parametrize("loss", [SoftTargets(), Dist()], **by_kind)
def test_losses_without_labels_use_every_sample(loss: Loss) -> None:
    assert value(loss, STUDENT, TEACHER, np.full_like(LABELS, NO_LABEL)) == value(loss)


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("loss", [HardLabels(), HardLabels(label_smoothing=0.2), Decoupled()], **by_kind)
def test_a_batch_without_labels_costs_nothing_and_can_be_summed(loss: Loss, count: int) -> None:
    student = torch.tensor(STUDENT[:count], requires_grad=True)
    batch = {"labels": torch.full((count,), NO_LABEL)}
    found = loss.compute(outputs(student), outputs(TEACHER[:count]), batch, None)
    (found + SoftTargets().compute(outputs(student), outputs(TEACHER[:count]), batch, None)).backward()
    assert float(found) == 0
    assert student.grad is not None
    (alone,) = torch.autograd.grad(loss.compute(outputs(student), outputs(TEACHER[:count]), batch, None), student)
    assert alone.abs().sum() == 0
