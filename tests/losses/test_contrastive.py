"""contrastive (CRD) against the authors' algorithm, written again in NumPy with explicit gathers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import ImageClassifierOutput

from edgeforge.core.errors import DataError, ModelError
from edgeforge.core.task import NO_LABEL
from edgeforge.losses import Training
from edgeforge.losses._memory import Contrast
from edgeforge.losses.contrastive import Contrastive

SAMPLES = 12
CLASSES = torch.arange(SAMPLES) % 3
SPEC = Contrastive(negatives=7, width=5)


def outputs(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> ImageClassifierOutput:
    state = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()
    return ImageClassifierOutput(logits=torch.zeros(shape[0], 3), hidden_states=(state,))


def batch_of(*rows: int) -> dict[str, torch.Tensor]:
    return {"rows": torch.tensor(rows), "labels": CLASSES[list(rows)]}


def modules_of(spec: Contrastive, student: Any, teacher: Any, samples: int = SAMPLES, seed: int = 0) -> Contrast:
    torch.manual_seed(0)
    modules = spec.modules(student, teacher, Training(samples=samples, seed=seed))
    assert isinstance(modules, Contrast)
    return modules


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy().copy()


class Reference:
    """RepDistiller's ContrastMemory and ContrastLoss, step by step, in float64."""

    def __init__(self, modules: Contrast, spec: Contrastive) -> None:
        self.spec = spec
        self.memory = [array(modules.student.kept), array(modules.teacher.kept)]
        self.weights = [
            (array(m.embedding.weight), array(m.embedding.bias)) for m in (modules.student, modules.teacher)
        ]
        self.z: list[float | None] = [None, None]

    def loss(self, features: list[np.ndarray], rows: list[int], negatives: np.ndarray) -> float:
        embedded = []
        for feature, (weight, bias) in zip(features, self.weights, strict=True):
            projected = feature @ weight.T + bias
            embedded.append(projected / np.linalg.norm(projected, axis=1, keepdims=True))
        drawn = np.concatenate([np.array(rows)[:, None], negatives], axis=1)
        total = 0.0
        for side in (0, 1):
            scores = np.exp(
                np.einsum("nkd,nd->nk", self.memory[side][drawn], embedded[1 - side]) / self.spec.temperature
            )
            if self.z[side] is None:
                self.z[side] = scores.mean() * SAMPLES
            p = scores / self.z[side]
            noise = self.spec.negatives / SAMPLES
            positive = np.log(p[:, 0] / (p[:, 0] + noise))
            negative = np.log(noise / (p[:, 1:] + noise)).sum(axis=1)
            total -= (positive + negative).mean()
        for side in (0, 1):
            moved = self.memory[side][rows] * self.spec.momentum + embedded[side] * (1 - self.spec.momentum)
            self.memory[side][rows] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
        return total


def test_three_steps_are_the_authors_algorithm() -> None:
    student, teacher = outputs(4, 6, 2, 2), outputs(4, 9, 3, seed=1)
    modules = modules_of(SPEC, student, teacher)
    reference = Reference(modules, SPEC)
    for step, rows in enumerate([[0, 5, 7, 3], [1, 2, 8, 9], [0, 1, 2, 3]]):
        student, teacher = outputs(4, 6, 2, 2, seed=2 + step), outputs(4, 9, 3, seed=20 + step)
        batch = batch_of(*rows)
        negatives = modules._negatives(batch["rows"], batch["labels"]).numpy()
        # Feature maps are averaged over places; of tokens the first counts.
        features = [array(student.hidden_states[0]).mean(axis=(2, 3)), array(teacher.hidden_states[0])[:, 0]]
        expected = reference.loss(features, rows, negatives)
        assert float(SPEC.compute(student, teacher, batch, modules)) == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(array(modules.student.kept), reference.memory[0], atol=1e-6)
        np.testing.assert_allclose(array(modules.teacher.kept), reference.memory[1], atol=1e-6)
        assert [math.exp(m.log_z) for m in (modules.student, modules.teacher)] == pytest.approx(reference.z, rel=1e-5)


def test_memories_start_at_unit_length_on_average() -> None:
    modules = modules_of(Contrastive(), outputs(2, 4, 3), outputs(2, 4, 3), samples=2000)
    for memory in (modules.student, modules.teacher):
        assert memory.kept.shape == (2000, 128)
        assert float(memory.kept.square().sum(dim=1).mean()) == pytest.approx(1, abs=0.02)
    assert not torch.equal(modules.student.kept, modules.teacher.kept)


# -- which negatives


def draws(modules: Contrast, *rows: int, labels: torch.Tensor | None = None) -> torch.Tensor:
    return modules._negatives(torch.tensor(rows), CLASSES[list(rows)] if labels is None else labels)


def test_negatives_are_of_other_classes_and_drawn_evenly() -> None:
    spec = Contrastive(negatives=8000, width=5)
    modules = modules_of(spec, outputs(2, 4, 3), outputs(2, 4, 3))
    modules.labels.copy_(CLASSES)
    for row, drawn in zip((0, 4), draws(modules, 0, 4), strict=True):
        counts = drawn.bincount(minlength=SAMPLES).double() / spec.negatives
        others = CLASSES[row] != CLASSES
        assert counts[~others].sum() == 0
        np.testing.assert_allclose(counts[others], 1 / 8, atol=0.015)


def test_samples_not_seen_yet_are_negatives_and_no_sample_is_its_own() -> None:
    spec = Contrastive(negatives=500, width=5)
    modules = modules_of(spec, outputs(2, 4, 3), outputs(2, 4, 3))
    assert sorted(draws(modules, 3)[0].unique().tolist()) == [row for row in range(SAMPLES) if row != 3]
    SPEC.compute(outputs(2, 4, 3), outputs(2, 4, 3), batch_of(0, 6), modules)
    assert modules.labels.tolist() == [0 if row in (0, 6) else NO_LABEL for row in range(SAMPLES)]
    assert sorted(draws(modules, 3)[0].unique().tolist()) == [row for row in range(SAMPLES) if row not in (0, 3, 6)]


def test_unlabelled_samples_have_all_others_as_negatives() -> None:
    spec = Contrastive(negatives=500, width=5)
    modules = modules_of(spec, outputs(2, 4, 3), outputs(2, 4, 3))
    modules.labels.copy_(CLASSES)
    modules.labels[[1, 2]] = NO_LABEL
    drawn = draws(modules, 1, labels=torch.tensor([NO_LABEL]))[0].unique().tolist()
    assert drawn == [row for row in range(SAMPLES) if row != 1]
    assert {1, 2} <= set(draws(modules, 0)[0].unique().tolist())


def test_draws_follow_from_seed_rows_and_step() -> None:
    student, teacher = outputs(2, 4, 3), outputs(2, 4, 3)
    modules, again = modules_of(SPEC, student, teacher), modules_of(SPEC, student, teacher)
    torch.manual_seed(99)
    first = draws(modules, 0, 5)
    assert torch.equal(first, draws(again, 0, 5))
    assert not torch.equal(first, draws(again, 1, 5))
    assert not torch.equal(first, draws(modules_of(SPEC, student, teacher, seed=1), 0, 5))
    again.step += 1
    assert not torch.equal(first, draws(again, 0, 5))


def test_nothing_to_tell_apart_is_refused() -> None:
    student, teacher = outputs(2, 4, 3), outputs(2, 4, 3)
    modules = modules_of(SPEC, student, teacher)
    modules.labels.fill_(1)
    with pytest.raises(DataError, match="all training samples are of one class"):
        SPEC.compute(student, teacher, {"rows": torch.tensor([0, 1]), "labels": torch.tensor([1, 1])}, modules)
    with pytest.raises(ModelError, match="another training sample"):
        modules_of(SPEC, student, teacher, samples=1)


# -- training


def test_gradients_reach_the_student_and_both_embeddings() -> None:
    student, teacher = outputs(3, 4, 3), outputs(3, 6, 3, seed=1)
    modules = modules_of(SPEC, student, teacher)
    SPEC.compute(student, teacher, batch_of(0, 1, 2), modules).backward()
    assert teacher.hidden_states[0].grad is None
    assert student.hidden_states[0].grad[:, 0].abs().sum() > 0
    assert student.hidden_states[0].grad[:, 1:].abs().sum() == 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in modules.parameters())


def test_gradients_are_those_of_the_value() -> None:
    """The memory moves before the backward pass; the gradient must still be that of the memory that was used."""
    student, teacher = outputs(2, 4, 3), outputs(2, 4, 3, seed=1)
    state = student.hidden_states[0]
    modules = modules_of(SPEC, student, teacher).double()
    modules.eval()

    def at(features: torch.Tensor) -> torch.Tensor:
        return modules(features, teacher.hidden_states[0][:, 0].detach().double(), batch_of(0, 1))

    features = state[:, 0].detach().double().requires_grad_()
    modules.train()
    with torch.no_grad():
        at(features)  # fixes Z
    modules.eval()
    assert torch.autograd.gradcheck(at, (features,))
    (still,) = torch.autograd.grad(at(features), features)
    modules.train()
    (moving,) = torch.autograd.grad(at(features), features)
    assert torch.equal(still, moving)


def test_evaluation_leaves_the_memory_alone() -> None:
    student, teacher = outputs(2, 4, 3), outputs(2, 4, 3, seed=1)
    modules = modules_of(SPEC, student, teacher)
    SPEC.compute(student, teacher, batch_of(0, 1), modules)
    before = {name: tensor.clone() for name, tensor in modules.state_dict().items()}
    modules.eval()
    SPEC.compute(student, teacher, batch_of(2, 3), modules)
    assert all(torch.equal(tensor, modules.state_dict()[name]) for name, tensor in before.items())


def test_all_that_changes_is_in_the_checkpoint() -> None:
    """Two steps, saved, loaded elsewhere, and two more: the bits of four steps at once."""
    rounds = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6)]

    def run(modules: Contrast, steps: range) -> list[float]:
        return [
            float(SPEC.compute(outputs(3, 4, 3, seed=s), outputs(3, 6, 3, seed=s + 9), batch_of(*rounds[s]), modules))
            for s in steps
        ]

    whole = modules_of(SPEC, outputs(3, 4, 3), outputs(3, 6, 3))
    first = modules_of(SPEC, outputs(3, 4, 3), outputs(3, 6, 3))
    expected = run(whole, range(4))
    found = run(first, range(2))
    torch.manual_seed(77)
    second = SPEC.modules(outputs(3, 4, 3), outputs(3, 6, 3), Training(samples=SAMPLES, seed=0))
    assert isinstance(second, Contrast)
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    assert found + run(second, range(2, 4)) == expected
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_a_student_learns_to_know_its_samples() -> None:
    """Starting from other weights, the student's embedding comes to point where the teacher's does."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SAMPLES, 8, generator=generator)
    theirs = (inputs @ torch.randn(8, 6, generator=generator)).tanh()[:, None, :]
    spec = Contrastive(negatives=16, width=8)
    modules = modules_of(spec, outputs(1, 6, 6), outputs(1, 6, 6))
    student = torch.nn.Linear(8, 6)
    optimizer = torch.optim.Adam([*student.parameters(), *modules.parameters()], lr=1e-2)
    losses = []
    for step in range(150):
        rows = torch.arange(SAMPLES)[step % 2 :: 2]
        answers = [
            ImageClassifierOutput(hidden_states=(state,)) for state in (student(inputs[rows])[:, None], theirs[rows])
        ]
        loss = spec.compute(answers[0], answers[1], {"rows": rows, "labels": CLASSES[rows]}, modules)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        cosines = modules.student.embed(student(inputs)) @ modules.teacher.embed(theirs[:, 0]).T
    assert cosines.diagonal().mean() > cosines[CLASSES[:, None] != CLASSES].mean() + 0.5


def test_half_precision_features_stay_finite() -> None:
    student, teacher = outputs(2, 4, 3, dtype=torch.bfloat16), outputs(2, 4, 3, seed=1, dtype=torch.bfloat16)
    found = SPEC.compute(student, teacher, batch_of(0, 1), modules_of(SPEC, student, teacher))
    found.backward()
    assert found.dtype == torch.float32
    assert torch.isfinite(found)
    assert torch.isfinite(student.hidden_states[0].grad).all()


def _two_processes(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mine = [[0, 1, 2], [3, 4]][rank]  # processes may have different numbers of samples
    student, teacher = outputs(5, 4, 3), outputs(5, 6, 3, seed=1)
    modules = modules_of(SPEC, student, teacher)
    parts = [ImageClassifierOutput(hidden_states=(one.hidden_states[0][mine],)) for one in (student, teacher)]
    SPEC.compute(parts[0], parts[1], batch_of(*mine), modules).backward()
    torch.save(modules.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_remember_the_same(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_two_processes, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    student, teacher = outputs(5, 4, 3), outputs(5, 6, 3, seed=1)
    alone = modules_of(SPEC, student, teacher)
    SPEC.compute(student, teacher, batch_of(0, 1, 2, 3, 4), alone)
    torch.testing.assert_close(first["student.kept"], alone.student.kept)
    torch.testing.assert_close(first["teacher.kept"], alone.teacher.kept)
    assert torch.equal(first["labels"], alone.labels)
    assert bool(first["student.log_z"].isfinite())
