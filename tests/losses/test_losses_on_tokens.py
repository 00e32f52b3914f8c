"""Losses of models that answer for every token: against formulas in NumPy and SciPy, and against plain autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp, rel_entr, softmax
from torch.nn import functional
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import ModelOutput

from edgeforge.core.errors import ModelError
from edgeforge.core.task import NO_LABEL
from edgeforge.losses import Loss, Training, _rows
from edgeforge.losses.attention_maps import AttentionMaps
from edgeforge.losses.contrastive import Contrastive
from edgeforge.losses.cosine_embedding import CosineEmbedding
from edgeforge.losses.decoupled import Decoupled
from edgeforge.losses.dist import Dist
from edgeforge.losses.hard_labels import HardLabels
from edgeforge.losses.hidden_states import HiddenStates
from edgeforge.losses.jensen_shannon import JensenShannon
from edgeforge.losses.reverse_kl import ReverseKl
from edgeforge.losses.soft_targets import SoftTargets
from edgeforge.losses.value_relations import ValueRelations
from edgeforge.models import buckets
from edgeforge.models.outputs import run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 11
RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(scale=2, size=(2, 3, 5, TOKENS)).astype(np.float32)
LABELS = RNG.integers(0, TOKENS, size=(3, 5))
LABELS[:, -1] = NO_LABEL
LABELS[1, :2] = NO_LABEL  # a chat's question
KEPT = LABELS != NO_LABEL
P, Q = softmax(TEACHER[KEPT].astype(float), axis=-1), softmax(STUDENT[KEPT].astype(float), axis=-1)
ON_LOGITS = [SoftTargets(temperature=3), HardLabels(), Decoupled(temperature=2), Dist(), ReverseKl(), JensenShannon()]
by_kind: dict[str, Any] = {"ids": lambda loss: loss.kind}


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rows, "CHUNK_NUMBERS", 4 * TOKENS)


def value(loss: Loss, student: Any = STUDENT, teacher: Any = TEACHER, labels: Any = LABELS) -> torch.Tensor:
    answers = [CausalLMOutput(logits=torch.as_tensor(one)) for one in (student, teacher)]
    return loss.compute(answers[0], answers[1], {"labels": torch.as_tensor(labels)}, None)


# -- the formulas, on tokens


def test_only_tokens_with_a_label_count_and_each_the_same() -> None:
    expected = -log_softmax(STUDENT[KEPT], axis=-1)[np.arange(KEPT.sum()), LABELS[KEPT]].mean()
    assert float(value(HardLabels())) == pytest.approx(expected, rel=1e-5)
    expected = rel_entr(P, Q).sum(axis=-1).mean()
    assert float(value(SoftTargets(temperature=1))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", ON_LOGITS, **by_kind)
def test_tokens_are_samples_of_as_many_classes(loss: Loss) -> None:
    """The formulas of one label per sample are checked against SciPy next door."""
    flat = value(loss, STUDENT[KEPT], TEACHER[KEPT], LABELS[KEPT])
    assert float(value(loss)) == pytest.approx(float(flat), rel=1e-5)


@pytest.mark.parametrize("temperature", [1, 2.5])
def test_reverse_kl_is_the_divergence_from_the_teacher(temperature: float) -> None:
    p, q = (softmax(one[KEPT].astype(float) / temperature, axis=-1) for one in (TEACHER, STUDENT))
    expected = temperature**2 * rel_entr(q, p).sum(axis=-1).mean()
    assert float(value(ReverseKl(temperature=temperature))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jensen_shannon_is_the_papers(beta: float) -> None:
    mixture = beta * P + (1 - beta) * Q
    expected = (beta * rel_entr(P, mixture) + (1 - beta) * rel_entr(Q, mixture)).sum(axis=-1).mean()
    assert float(value(JensenShannon(beta=beta))) == pytest.approx(expected, rel=1e-5)


def test_jensen_shannon_tends_to_either_divergence() -> None:
    small = 1e-3
    forward, reverse = float(value(SoftTargets(temperature=1))), float(value(ReverseKl()))
    assert float(value(JensenShannon(beta=small))) / small == pytest.approx(forward, rel=0.02)
    assert float(value(JensenShannon(beta=1 - small))) / small == pytest.approx(reverse, rel=0.02)
    assert float(value(JensenShannon())) <= math.log(2)


# -- gradients, worked out chunk by chunk


def plain(loss: Loss, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The same in a few lines that keep everything."""
    kept = labels != NO_LABEL
    ours, theirs = student[kept].log_softmax(-1), teacher[kept].log_softmax(-1)
    if isinstance(loss, HardLabels):
        return functional.nll_loss(ours, labels[kept])
    if isinstance(loss, SoftTargets):
        return functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")
    if isinstance(loss, ReverseKl):
        return functional.kl_div(theirs, ours, log_target=True, reduction="batchmean")
    mixture = ((ours.exp() + theirs.exp()) / 2).log()
    halves = [functional.kl_div(mixture, one, log_target=True, reduction="batchmean") for one in (ours, theirs)]
    return (halves[0] + halves[1]) / 2


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("loss", [HardLabels(), SoftTargets(temperature=1), ReverseKl(), JensenShannon()], **by_kind)
def test_gradients_are_autograds(loss: Loss, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rows, "CHUNK_NUMBERS", chunk * TOKENS)
    student, teacher, labels = torch.tensor(STUDENT), torch.tensor(TEACHER), torch.tensor(LABELS)
    ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    (3 * value(loss, ours)).backward()
    (3 * plain(loss, theirs, teacher, labels)).backward()
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert not ours.grad[torch.tensor(~KEPT)].any()


@pytest.mark.parametrize("loss", ON_LOGITS, **by_kind)
def test_gradients_are_those_of_finite_differences(loss: Loss) -> None:
    student = torch.tensor(STUDENT, requires_grad=True)
    value(loss, student).backward()
    direction = torch.tensor(RNG.normal(size=STUDENT.shape), dtype=torch.float32)
    step = 1e-2
    with torch.no_grad():
        slope = (value(loss, student + step * direction) - value(loss, student - step * direction)) / (2 * step)
    assert student.grad is not None
    assert float((student.grad * direction).sum()) == pytest.approx(float(slope), rel=0.02, abs=2e-4)


@pytest.mark.parametrize("loss", ON_LOGITS, **by_kind)
def test_bfloat16_logits_get_bfloat16_gradients(loss: Loss) -> None:
    student = torch.tensor(STUDENT).bfloat16().requires_grad_()
    found = value(loss, student, torch.tensor(TEACHER).bfloat16())
    found.backward()
    assert found.dtype == torch.float32
    assert student.grad is not None and student.grad.dtype == torch.bfloat16
    assert float(found) == pytest.approx(float(value(loss)), rel=0.05)


@pytest.mark.parametrize("loss", [one for one in ON_LOGITS if not isinstance(one, Dist)], **by_kind)
def test_a_batch_with_nothing_to_learn_teaches_nothing(loss: Loss) -> None:
    student = torch.tensor(STUDENT, requires_grad=True)
    found = value(loss, student, labels=np.full_like(LABELS, NO_LABEL))
    found.backward()
    assert float(found.detach()) == 0
    assert student.grad is not None and not student.grad.any()


def test_vocabularies_that_differ_are_refused_with_another_way() -> None:
    with pytest.raises(ModelError, match=r"11 tokens and the teacher 8(.|\n)*`generate`(.|\n)*`finetune`"):
        value(SoftTargets(), teacher=TEACHER[..., :8])


# -- a teacher that kept its likeliest answers


def shortened(k: int, teacher: np.ndarray = TEACHER) -> ModelOutput:
    ids, values = buckets.shorten(torch.tensor(teacher[KEPT]), k)
    return ModelOutput(bucket_ids=ids.int(), bucket_log_probabilities=values)


@pytest.mark.parametrize("k", [1, 3, TOKENS - 1])
def test_buckets_are_the_formula_by_hand(k: int) -> None:
    expected: dict[str, list[float]] = {"soft_targets": [], "reverse_kl": [], "jensen_shannon": []}
    for p, q in zip(P, Q, strict=True):
        top = np.argsort(-p)[:k]
        p, q = (np.append(one[top], 1 - one[top].sum()) for one in (p, q))
        m = (p + q) / 2
        expected["soft_targets"].append((p * np.log(p / q)).sum())
        expected["reverse_kl"].append((q * np.log(q / p)).sum())
        expected["jensen_shannon"].append((p * np.log(p / m) + q * np.log(q / m)).sum() / 2)
    batch = {"labels": torch.tensor(LABELS)}
    for loss in (SoftTargets(temperature=1), ReverseKl(), JensenShannon()):
        found = loss.compute(CausalLMOutput(logits=torch.tensor(STUDENT)), shortened(k), batch, None)
        assert float(found) == pytest.approx(np.mean(expected[loss.kind]), rel=1e-4), loss.kind


def test_a_tail_far_below_what_float32_resolves_next_to_one_still_teaches() -> None:
    logits = torch.tensor([[30.0, 0.0, -1.0, -2.0]], requires_grad=True)
    found = buckets.bucketed(logits, torch.tensor([[0]]))
    assert float(found[0, 1]) == pytest.approx(logsumexp([0, -1, -2]) - 30, rel=1e-5)
    found[0, 1].backward()
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad[0, 1:], softmax([0, -1, -2]), rtol=1e-4)


def test_buckets_teach_through_every_logit() -> None:
    student = torch.tensor(STUDENT, requires_grad=True)
    answer = CausalLMOutput(logits=student)
    SoftTargets(temperature=1).compute(answer, shortened(2), {"labels": torch.tensor(LABELS)}, None).backward()
    assert student.grad is not None
    assert (student.grad[torch.tensor(KEPT)] != 0).all()


# -- inside decoders


def eager(model: PreTrainedModel) -> PreTrainedModel:
    model.set_attn_implementation("eager")
    return model


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.tensor(np.random.default_rng(1).integers(3, 300, size=(2, 9)))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_states_are_those_that_the_decoder_compares(
    family: str, tiny_lm: Callable[[str], PreTrainedModel], ids: torch.Tensor
) -> None:
    """Softmax of their masked scores is the model's own attention: so they are normed, rotated and grouped as there."""
    from edgeforge.losses._attention import log_relations, scores
    from edgeforge.losses._tokens import visible_tokens

    model = eager(tiny_lm(family))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    batch = {"attention_mask": mask, "labels": ids}
    with torch.no_grad():
        wanted = model(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
        answer = run(model, {"input_ids": ids, "attention_mask": mask}, frozenset({"query_states", "key_states"}))
    assert len(answer.query_states) == len(wanted) == model.config.num_hidden_layers
    for query, key, attention in zip(answer.query_states, answer.key_states, wanted, strict=True):
        assert key.shape[1] == model.config.num_key_value_heads < query.shape[1]
        found = log_relations(scores(query, key), visible_tokens(batch)).exp()
        torch.testing.assert_close(found[0], attention[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found[1, :, :6], attention[1, :, :6], rtol=1e-4, atol=1e-6)


STATE_LOSSES = [
    HiddenStates(layers="evenly_spaced"),
    CosineEmbedding(),
    AttentionMaps(),
    ValueRelations(),
    ValueRelations(relation_heads=8),
]


def on_decoders(loss: Loss, models: list[PreTrainedModel], ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    batch = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        teacher = run(models[1], batch, loss.outputs)
    return loss.compute(run(models[0], batch, loss.outputs), teacher, {**batch, "labels": ids}, None)


@pytest.mark.parametrize("loss", STATE_LOSSES, ids=lambda loss: f"{loss.kind}{getattr(loss, 'relation_heads', '')}")
def test_padding_behind_a_text_changes_nothing_inside_decoders(
    loss: Loss, tiny_lm: Callable[[str], PreTrainedModel], ids: torch.Tensor
) -> None:
    models = [tiny_lm("llama"), tiny_lm("mistral")]
    models[1].load_state_dict(models[0].state_dict())  # the same but for what is moved
    torch.manual_seed(0)
    for parameter in models[1].parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    bare = on_decoders(loss, models, ids, torch.ones_like(ids))
    padded = torch.cat([ids, torch.full((2, 4), 2)], dim=1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(2, 4, dtype=torch.int64)], dim=1)
    assert float(bare) > 1e-4
    torch.testing.assert_close(on_decoders(loss, models, padded, mask), bare, rtol=1e-4, atol=1e-6)
    bare.backward()
    assert models[0].model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_value_relations_of_a_decoder_by_hand() -> None:
    """Two query heads share one key and one value head; no token looks ahead."""
    rng = np.random.default_rng(5)
    states = {
        who: {name: rng.normal(size=(1, heads, 3, 4)) for name, heads in (("query", 2), ("key", 1), ("value", 1))}
        for who in ("student", "teacher")
    }

    def relations(left: np.ndarray, right: np.ndarray) -> list[np.ndarray]:
        return [softmax(left[t] @ right[: t + 1].T / 2) for t in range(3)]

    expected = 0.0
    for left, right, heads in (("query", "key", 2), ("value", "value", 1)):
        terms = []
        for head in range(heads):
            p, q = (relations(states[who][left][0, head], states[who][right][0, 0]) for who in ("teacher", "student"))
            terms += [rel_entr(a, b).sum() for a, b in zip(p, q, strict=True)]
        expected += float(np.mean(terms))
    answers = [
        ModelOutput({f"{name}_states": (torch.tensor(value),) for name, value in states[who].items()})
        for who in ("student", "teacher")
    ]
    batch = {"attention_mask": torch.ones(1, 3, dtype=torch.int64), "labels": torch.zeros(1, 3, dtype=torch.int64)}
    assert float(ValueRelations().compute(answers[0], answers[1], batch, None)) == pytest.approx(expected, rel=1e-4)


def test_attention_maps_of_a_decoder_by_hand() -> None:
    rng = np.random.default_rng(6)
    queries, keys = rng.normal(size=(2, 1, 2, 3, 4)), rng.normal(size=(2, 1, 1, 3, 4))
    errors = [
        ((queries[0, 0, head, t] @ keys[0, 0, 0, s] - queries[1, 0, head, t] @ keys[1, 0, 0, s]) / 2) ** 2
        for head in range(2)
        for t in range(3)
        for s in range(t + 1)
    ]
    answers = [
        ModelOutput(query_states=(torch.tensor(q),), key_states=(torch.tensor(k),))
        for q, k in zip(queries, keys, strict=True)
    ]
    batch = {"attention_mask": torch.ones(1, 3, dtype=torch.int64), "labels": torch.zeros(1, 3, dtype=torch.int64)}
    assert float(AttentionMaps().compute(answers[0], answers[1], batch, None)) == pytest.approx(
        np.mean(errors), rel=1e-4
    )


def test_contrastive_has_no_classes_to_tell_apart() -> None:
    answer = CausalLMOutput(logits=torch.tensor(STUDENT), hidden_states=(torch.zeros(3, 5, 4),))
    with pytest.raises(ModelError, match="samples have none"):
        Contrastive().modules(answer, answer, Training(samples=9, seed=0))
