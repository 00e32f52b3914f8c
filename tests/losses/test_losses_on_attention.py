"""attention_maps and value_relations against the papers' formulas in NumPy, one text at a time and without padding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from transformers.modeling_outputs import SequenceClassifierOutput

from edgeforge.core.errors import ModelError
from edgeforge.losses import Loss, Training
from edgeforge.losses.attention_maps import AttentionMaps
from edgeforge.losses.value_relations import ValueRelations

LENGTHS = (5, 1, 3)
MASK = torch.tensor([[1] * length + [0] * (5 - length) for length in LENGTHS])
STATES = ("query_states", "key_states", "value_states")
by_kind = {"ids": lambda loss: f"{loss.kind}-{getattr(loss, 'relation_heads', None)}"}


def outputs(
    blocks: int = 2,
    heads: int = 2,
    size: int = 4,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    tokens: int = 5,
) -> Any:
    generator = torch.Generator().manual_seed(seed)
    answer = SequenceClassifierOutput(logits=torch.zeros(3, 2))
    for name in STATES:
        shape = (len(LENGTHS), heads, tokens, size)
        answer[name] = tuple(torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(blocks))
    return answer


def value(loss: Loss, student: Any, teacher: Any, mask: torch.Tensor | None = MASK) -> torch.Tensor:
    assert loss.modules(student, teacher, Training(samples=10, seed=0)) is None
    batch = {"labels": torch.zeros(len(LENGTHS), dtype=torch.int64)}
    return loss.compute(student, teacher, batch if mask is None else {**batch, "attention_mask": mask}, None)


def texts(answer: Any, name: str, layer: int, lengths: tuple[int, ...] = LENGTHS) -> list[np.ndarray]:
    """Each text's state (heads, its length, size), float64, padding cut off."""
    state = answer[name][layer].detach().double().numpy()
    return [state[index, :, :length] for index, length in enumerate(lengths)]


def scores(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.einsum("hid,hjd->hij", left, right) / math.sqrt(left.shape[-1])


def maps_error(student: Any, teacher: Any, pairs: list[tuple[int, int]], lengths: tuple[int, ...] = LENGTHS) -> float:
    """TinyBERT, eq. 7: the mean squared error of unnormalised attention matrices; pairs are block indices from 0."""
    errors = []
    for mine, other in pairs:
        ours = map(scores, texts(student, STATES[0], mine, lengths), texts(student, STATES[1], mine, lengths))
        theirs = map(scores, texts(teacher, STATES[0], other, lengths), texts(teacher, STATES[1], other, lengths))
        errors.append(np.mean([((a - b) ** 2).mean() for a, b in zip(ours, theirs, strict=True)]))
    return float(np.mean(errors))


def relation_error(student: Any, teacher: Any, names: tuple[str, str], heads: int | None = None) -> float:
    """MiniLM, eq. 5 to 8: KL(teacher || student) of softmaxed relations, averaged over heads and tokens of a text."""

    def split(state: np.ndarray) -> np.ndarray:
        if heads is None:
            return state
        flat = np.concatenate(list(state), axis=-1)  # (length, width)
        return np.stack(np.split(flat, heads, axis=-1))

    found = []
    for index in range(len(LENGTHS)):
        ours, theirs = (
            softmax(scores(*(split(texts(answer, name, -1)[index]) for name in names)), axis=-1)
            for answer in (student, teacher)
        )
        found.append(rel_entr(theirs, ours).sum(axis=-1).mean())
    return float(np.mean(found))


# -- attention_maps


def test_attention_maps_is_the_mean_squared_error_of_scores() -> None:
    student, teacher = outputs(), outputs(seed=1, size=6)
    found = value(AttentionMaps(), student, teacher)
    assert float(found) == pytest.approx(maps_error(student, teacher, [(0, 0), (1, 1)]), rel=1e-5)


def test_attention_maps_by_hand() -> None:
    """One head of size 4, two tokens. Student scores are 0; the teacher's are [[2, 0], [0, 0]]: MSE 4 / 4."""
    student, teacher = outputs(1, 1), outputs(1, 1)
    for answer, filled in ((student, 0.0), (teacher, 2.0)):
        for name in STATES[:2]:
            state = torch.zeros(1, 1, 2, 4)
            state[0, 0, 0, 0] = filled
            answer[name] = (state,)
    found = AttentionMaps().compute(student, teacher, {"attention_mask": torch.ones(1, 2, dtype=torch.int64)}, None)
    assert float(found) == 1.0


@pytest.mark.parametrize(
    ("layers", "pairs"),
    [
        ("last", [(1, 5)]),
        ("evenly_spaced", [(0, 2), (1, 5)]),
        (((1, 3), (2, -1)), [(0, 2), (1, 5)]),
        (((-2, 1),), [(0, 0)]),
    ],
)
def test_layers_are_numbered_as_hidden_states(layers: Any, pairs: list[tuple[int, int]]) -> None:
    student, teacher = outputs(2), outputs(6, seed=1)
    found = value(AttentionMaps(layers=layers), student, teacher)
    assert float(found) == pytest.approx(maps_error(student, teacher, pairs), rel=1e-5)


def test_attention_maps_names_what_is_not_there() -> None:
    student, teacher = outputs(2), outputs(6)
    with pytest.raises(ModelError, match="layer 0 of the student is the embedding"):
        value(AttentionMaps(layers=((0, 1),)), student, teacher)
    with pytest.raises(ModelError, match="layer 7 of the teacher, which has layers 0 to 6"):
        value(AttentionMaps(layers=((1, 7),)), student, teacher)


# -- value_relations


def test_minilm_is_attention_and_value_relation() -> None:
    student, teacher = outputs(1, size=3), outputs(3, seed=1, size=8)
    expected = relation_error(student, teacher, (STATES[0], STATES[1]))
    expected += relation_error(student, teacher, (STATES[2], STATES[2]))
    assert float(value(ValueRelations(), student, teacher)) == pytest.approx(expected, rel=1e-4)


def test_value_relations_by_hand() -> None:
    """Two tokens, the teacher's attention (3/4, 1/4) for the first, all else even: KL = 3/4 ln(3/2) + 1/4 ln(1/2)."""
    student, teacher = outputs(1, 1), outputs(1, 1)
    for answer in (student, teacher):
        for name in STATES:
            answer[name] = (torch.zeros(1, 1, 2, 1),)
    teacher["query_states"] = (torch.tensor([1.0, 0.0])[None, None, :, None],)
    teacher["key_states"] = (torch.tensor([math.log(3), 0.0])[None, None, :, None],)
    found = ValueRelations().compute(student, teacher, {"attention_mask": torch.ones(1, 2)}, None)
    one_token = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(found) == pytest.approx(one_token / 2, rel=1e-6)


@pytest.mark.parametrize("heads", [1, 2, 6])
def test_minilm_v2_relates_each_state_to_itself_in_any_number_of_heads(heads: int) -> None:
    student, teacher = outputs(1, heads=2, size=6), outputs(2, heads=3, size=8, seed=1)
    expected = sum(relation_error(student, teacher, (name, name), heads) for name in STATES)
    found = value(ValueRelations(relation_heads=heads), student, teacher)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_relation_heads_must_divide_both_widths() -> None:
    student, teacher = outputs(heads=2, size=6), outputs(heads=3, size=8)
    with pytest.raises(ModelError, match="8 relation heads do not divide the student's width 12"):
        value(ValueRelations(relation_heads=8), student, teacher)
    with pytest.raises(ModelError, match=r"3 attention heads|2 attention heads and the teacher 3") as caught:
        value(ValueRelations(), student, teacher)
    assert "relation_heads" in str(caught.value)


# -- both

BOTH = [AttentionMaps(), ValueRelations(), ValueRelations(relation_heads=4)]


@pytest.mark.parametrize("loss", BOTH, **by_kind)
def test_an_identical_student_costs_nothing(loss: Loss) -> None:
    student, teacher = outputs(), outputs()
    found = value(loss, student, teacher)
    found.backward()
    assert float(found) == pytest.approx(0, abs=1e-6)
    assert all(torch.isfinite(state.grad).all() for name in STATES for state in student[name] if state.grad is not None)


@pytest.mark.parametrize("loss", BOTH, **by_kind)
def test_gradients_reach_the_students_real_tokens_only(loss: Loss) -> None:
    student, teacher = outputs(), outputs(seed=1)
    value(loss, student, teacher).backward()
    for name in set(STATES) & loss.outputs:
        assert all(state.grad is None for state in teacher[name])
        grad = student[name][-1].grad
        lengths = [index for index, length in enumerate(LENGTHS) if length > 1]  # one token relates to itself alone
        assert all(grad[index].abs().sum() > 0 for index in lengths)
        padding = ~MASK.bool()
        assert grad.transpose(1, 2)[padding].abs().sum() == 0


@pytest.mark.parametrize("loss", BOTH, **by_kind)
def test_what_stands_in_padding_changes_nothing(loss: Loss) -> None:
    student, teacher = outputs(), outputs(seed=1)
    before = float(value(loss, student, teacher))
    padding = ~MASK.bool()[:, None, :, None]
    for answer in (student, teacher):
        for name in STATES:
            answer[name] = tuple(state.detach().masked_fill(padding, 1e4) for state in answer[name])
    assert float(value(loss, student, teacher)) == before


@pytest.mark.parametrize("loss", BOTH, **by_kind)
def test_a_batch_in_pieces_means_the_same(loss: Loss) -> None:
    student, teacher = outputs(), outputs(seed=1)

    def alone(index: int) -> float:
        parts = []
        for answer in (student, teacher):
            part = SequenceClassifierOutput(logits=torch.zeros(1, 2))
            for name in STATES:
                part[name] = tuple(state[index : index + 1, :, : LENGTHS[index]] for state in answer[name])
            parts.append(part)
        mask = torch.ones(1, LENGTHS[index], dtype=torch.int64)
        return float(loss.compute(parts[0], parts[1], {"attention_mask": mask}, None))

    single = [alone(index) for index in range(len(LENGTHS))]
    assert float(value(loss, student, teacher)) == pytest.approx(np.mean(single), rel=1e-5)


@pytest.mark.parametrize("loss", BOTH, **by_kind)
def test_images_have_no_padding(loss: Loss) -> None:
    student, teacher = outputs(), outputs(seed=1)
    full = value(loss, student, teacher, torch.ones_like(MASK))
    assert float(value(loss, student, teacher, None)) == pytest.approx(float(full), rel=1e-6)
    assert float(full) != pytest.approx(float(value(loss, student, teacher)), rel=1e-3)


@pytest.mark.parametrize("loss", BOTH, **by_kind)
def test_a_text_without_tokens_and_loud_states_stay_finite(loss: Loss) -> None:
    student, teacher = outputs(dtype=torch.bfloat16), outputs(seed=1, dtype=torch.bfloat16)
    for name in STATES:
        student[name] = tuple((state * 100).detach().requires_grad_() for state in student[name])
    mask = MASK.clone()
    mask[1] = 0
    found = value(loss, student, teacher, mask)
    found.backward()
    assert found.dtype == torch.float32
    assert torch.isfinite(found)
    for name in set(STATES) & loss.outputs:
        assert torch.isfinite(student[name][-1].grad).all()


@pytest.mark.parametrize("loss", [AttentionMaps(), ValueRelations()], **by_kind)
def test_other_heads_and_tokens_are_refused(loss: Loss) -> None:
    with pytest.raises(ModelError, match="2 attention heads and the teacher 4") as caught:
        value(loss, outputs(), outputs(heads=4))
    assert "relation_heads" in str(caught.value)
    with pytest.raises(ModelError, match="5 tokens and the teacher 7"):
        value(loss, outputs(), outputs(tokens=7), None)


@pytest.mark.parametrize("cls", [AttentionMaps, ValueRelations])
def test_a_model_without_attention_is_refused(cls: Callable[[], Loss]) -> None:
    empty = SequenceClassifierOutput(logits=torch.zeros(3, 2))
    for name in STATES:
        empty[name] = ()
    with pytest.raises(ModelError, match="the teacher has no self-attention"):
        value(cls(), outputs(), empty)
    with pytest.raises(ModelError, match="the student has no self-attention"):
        value(cls(), empty, outputs())
