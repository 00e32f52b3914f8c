"""A student with its losses: what is asked of whom, what is kept beside it, and in which precision losses are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification
from transformers.utils import ModelOutput

from edgeforge.losses import Loss, Training
from edgeforge.losses.attention_maps import AttentionMaps
from edgeforge.losses.contrastive import Contrastive
from edgeforge.losses.cosine_embedding import CosineEmbedding
from edgeforge.losses.hard_labels import HardLabels
from edgeforge.losses.hidden_states import HiddenStates
from edgeforge.losses.soft_targets import SoftTargets
from edgeforge.losses.value_relations import ValueRelations
from edgeforge.models.outputs import run
from edgeforge.teachers import OpenTeacher
from edgeforge.training.objective import Trainee

TRAINING = Training(samples=20, seed=3)
EVERY = (
    SoftTargets(weight=0.5),
    HardLabels(weight=0.25),
    HiddenStates(layers=((0, 0), (1, 2))),
    AttentionMaps(),
    ValueRelations(weight=2),
    Contrastive(negatives=9, width=4, weight=0.8),
)


def model(width: int = 16, layers: int = 1, seed: int = 0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=30,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=8,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


class Teaching(OpenTeacher):
    def __init__(self) -> None:
        self.model = model(24, 2, seed=1).eval()
        self.asked: list[frozenset[str]] = []

    def __call__(self, batch: Any, outputs: frozenset[str]) -> ModelOutput:
        self.asked.append(outputs)
        with torch.no_grad():
            return run(self.model, {name: batch[name] for name in ("input_ids", "attention_mask")}, outputs)


def batch_of(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    rows = torch.randperm(TRAINING.samples, generator=generator)[:4]
    return {
        "input_ids": torch.randint(0, 30, (4, 6), generator=generator),
        "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] + [0] * 5, [1] * 6]),
        "labels": torch.tensor([0, -100, 2, 1]),
        "rows": rows,
    }


def trainee_of(*losses: Loss, teacher: OpenTeacher | None = None, seed: int = 5) -> Trainee:
    trainee = Trainee(model(), losses, teacher if teacher is not None else Teaching())
    torch.manual_seed(seed)
    trainee.make_loss_modules(batch_of(0), TRAINING)
    return trainee.train()


def test_the_loss_is_the_weighted_sum() -> None:
    trainee = trainee_of(*EVERY)
    batch = batch_of(0)
    teacher = trainee.teacher_outputs(batch)
    found = float(trainee(batch, teacher))
    student = run(trainee.student, {name: batch[name] for name in ("input_ids", "attention_mask")}, trainee.outputs)
    again = trainee_of(*EVERY)
    terms = [
        loss.weight * float(loss.compute(student, teacher, batch, dict(again.loss_modules).get(str(position))))
        for position, loss in enumerate(EVERY)
    ]
    assert all(term > 0 for term in terms)
    assert found == pytest.approx(sum(terms), rel=1e-5)


def test_the_teacher_is_asked_for_what_losses_read_and_no_more() -> None:
    for losses, outputs in (
        ((SoftTargets(), HardLabels()), frozenset()),
        ((SoftTargets(), CosineEmbedding(weight=0)), frozenset()),
        ((HiddenStates(),), frozenset({"hidden_states"})),
        ((AttentionMaps(), ValueRelations(weight=0)), frozenset({"query_states", "key_states"})),
    ):
        teacher = Teaching()
        trainee = trainee_of(*losses, teacher=teacher)
        trainee.teacher_outputs(batch_of(1))
        assert teacher.asked == [outputs, outputs]


def test_no_teacher_is_asked_where_no_loss_needs_one() -> None:
    teacher = Teaching()
    trainee = trainee_of(HardLabels(), SoftTargets(weight=0), teacher=teacher)
    assert trainee.teacher_outputs(batch_of(0)) is None
    assert teacher.asked == []
    assert torch.isfinite(trainee(batch_of(0), None))


def test_what_losses_keep_is_trained_and_is_not_the_students() -> None:
    trainee = trainee_of(*EVERY)
    batch = batch_of(0)
    trainee(batch, trainee.teacher_outputs(batch)).backward()
    assert list(trainee.loss_modules) == ["2", "5"]
    assert all(parameter.grad is not None for parameter in trainee.loss_modules.parameters())
    assert {"loss_modules.2.0.weight", "loss_modules.5.student.kept", "loss_modules.5.step"} <= set(
        trainee.state_dict()
    )
    assert trainee.student.state_dict().keys() == model().state_dict().keys()


def test_making_modules_leaves_the_student_as_it_was() -> None:
    trainee = Trainee(model().train(), EVERY, Teaching())
    before = {name: value.clone() for name, value in trainee.student.state_dict().items()}
    trainee.make_loss_modules(batch_of(0), TRAINING)
    assert trainee.student.training
    assert all(torch.equal(value, before[name]) for name, value in trainee.student.state_dict().items())
    assert all(parameter.grad is None for parameter in trainee.student.parameters())


class Probe(Loss):
    """What precision a loss computes in, and what it is given."""

    kind: Literal["probe"] = "probe"
    outputs: ClassVar[frozenset[str]] = frozenset({"hidden_states"})
    seen: ClassVar[list[torch.dtype]] = []

    def compute(
        self, student: ModelOutput, teacher: ModelOutput | None, batch: Mapping[str, torch.Tensor], modules: Any
    ) -> torch.Tensor:
        last = student.hidden_states[-1].float()
        self.seen[:] = [student.logits.dtype, (last @ last.transpose(1, 2)).dtype]
        return student.logits.float().sum()


def test_losses_are_computed_in_full_precision_though_models_are_not() -> None:
    trainee = trainee_of(Probe())
    batch = batch_of(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trainee(batch, trainee.teacher_outputs(batch))
    assert Probe.seen == [torch.bfloat16, torch.float32]


def test_every_loss_works_on_half_precision_models() -> None:
    trainee, full = trainee_of(*EVERY), trainee_of(*EVERY)
    batch = batch_of(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = trainee(batch, trainee.teacher_outputs(batch))
    found.backward()
    assert float(found) == pytest.approx(float(full(batch, full.teacher_outputs(batch))), rel=0.02)
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in trainee.parameters())


def steps(trainee: Trainee, optimizer: torch.optim.Optimizer, numbers: range) -> list[float]:
    found = []
    for number in numbers:
        batch = batch_of(number)
        loss = trainee(batch, trainee.teacher_outputs(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_a_run_that_was_killed_goes_on_to_the_same_bits() -> None:
    def new(seed: int) -> tuple[Trainee, torch.optim.Optimizer]:
        trainee = trainee_of(*EVERY, seed=seed)
        return trainee, torch.optim.SGD(trainee.parameters(), lr=0.05)

    whole = new(5)
    expected = steps(*whole, range(6))
    first, second = new(5), new(6)
    found = steps(*first, range(3))
    torch.manual_seed(1234)
    second[0].load_state_dict({name: value.clone() for name, value in first[0].state_dict().items()})
    assert found + steps(*second, range(3, 6)) == expected
    assert all(torch.equal(value, second[0].state_dict()[name]) for name, value in whole[0].state_dict().items())


def test_one_process_group_serves_all_of_them(tmp_path: Path) -> None:
    """Wrapped for distributed training, hooks and memories work as they do alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        trainee, alone = trainee_of(*EVERY), trainee_of(*EVERY)
        wrapped = torch.nn.parallel.DistributedDataParallel(trainee, find_unused_parameters=True)
        batch = batch_of(0)
        losses = [one(batch, trainee.teacher_outputs(batch)) for one in (wrapped, alone)]
        for loss in losses:
            loss.backward()
        assert float(losses[0]) == float(losses[1])
        for ours, theirs in zip(trainee.parameters(), alone.parameters(), strict=True):
            assert (ours.grad is None and theirs.grad is None) or torch.allclose(ours.grad, theirs.grad)
        assert torch.equal(
            trainee.state_dict()["loss_modules.5.student.kept"], alone.state_dict()["loss_modules.5.student.kept"]
        )
    finally:
        torch.distributed.destroy_process_group()
