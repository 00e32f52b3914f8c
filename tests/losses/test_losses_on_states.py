"""hidden_states, cosine_embedding and attention_transfer on made-up states and on real tiny models."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers.modeling_outputs import ImageClassifierOutput

from edgeforge.core.errors import ModelError
from edgeforge.core.spec import canonical_json
from edgeforge.losses import Loss, Training
from edgeforge.losses.attention_transfer import AttentionTransfer
from edgeforge.losses.cosine_embedding import CosineEmbedding
from edgeforge.losses.hidden_states import HiddenStates

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRAINING = Training(samples=10, seed=0)


def outputs(*shapes: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> ImageClassifierOutput:
    generator = torch.Generator().manual_seed(seed)
    states = tuple(torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes)
    return ImageClassifierOutput(logits=torch.zeros(2, 3), hidden_states=states)


def value(loss: Loss, student: Any, teacher: Any, modules: torch.nn.Module | None = None) -> torch.Tensor:
    return loss.compute(student, teacher, {"labels": torch.zeros(2, dtype=torch.int64)}, modules)


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


# -- hidden_states


def test_hidden_states_is_the_mean_squared_error_of_the_last_layers() -> None:
    student, teacher = outputs((2, 9, 1, 1), (2, 4, 3, 3)), outputs((2, 4, 3, 3), seed=1)
    expected = ((array(student.hidden_states[-1]) - array(teacher.hidden_states[-1])) ** 2).mean()
    assert HiddenStates().modules(student, teacher, TRAINING) is None
    assert float(value(HiddenStates(), student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_hidden_states_projects_other_widths() -> None:
    student, teacher = outputs((2, 4, 3, 3)), outputs((2, 7, 3, 3), seed=1)
    modules = HiddenStates().modules(student, teacher, TRAINING)
    assert modules is not None
    (projection,) = modules.children()
    weight, bias = array(projection.weight)[:, :, 0, 0], array(projection.bias)  # type: ignore[arg-type]
    projected = np.einsum("oc,nchw->nohw", weight, array(student.hidden_states[0])) + bias[:, None, None]
    expected = ((projected - array(teacher.hidden_states[0])) ** 2).mean()
    found = value(HiddenStates(), student, teacher, modules)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert projection.weight.grad.abs().sum() > 0  # type: ignore[union-attr]
    assert student.hidden_states[0].grad.abs().sum() > 0
    assert teacher.hidden_states[0].grad is None


def test_hidden_states_projects_tokens() -> None:
    student, teacher = outputs((2, 5, 4)), outputs((2, 5, 6), seed=1)
    modules = HiddenStates().modules(student, teacher, TRAINING)
    assert modules is not None
    (projection,) = modules.children()
    projected = array(student.hidden_states[0]) @ array(projection.weight).T + array(projection.bias)  # type: ignore[arg-type]
    expected = ((projected - array(teacher.hidden_states[0])) ** 2).mean()
    assert float(value(HiddenStates(), student, teacher, modules)) == pytest.approx(expected, rel=1e-5)


def test_hidden_states_pools_larger_maps() -> None:
    student, teacher = outputs((2, 4, 2, 2)), outputs((2, 4, 6, 4), seed=1)
    pooled = array(teacher.hidden_states[0]).reshape(2, 4, 2, 3, 2, 2).mean(axis=(3, 5))
    expected = ((array(student.hidden_states[0]) - pooled) ** 2).mean()
    assert float(value(HiddenStates(), student, teacher)) == pytest.approx(expected, rel=1e-5)
    assert float(value(HiddenStates(), teacher, student)) == pytest.approx(expected, rel=1e-5)


def test_hidden_states_averages_over_pairs() -> None:
    student, teacher = outputs((2, 3, 2, 2), (2, 4, 2, 2)), outputs((2, 3, 2, 2), (2, 4, 2, 2), (2, 4, 2, 2), seed=1)
    pairs = [HiddenStates(layers=((0, 0),)), HiddenStates(layers=((1, 2),))]
    both = value(HiddenStates(layers=((0, 0), (-1, -1))), student, teacher)
    assert float(both) == pytest.approx(float(sum(value(pair, student, teacher) for pair in pairs)) / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (3, 3, [1, 2]),
        (3, 5, [2, 4]),
        (5, 3, [1, 1, 2, 2]),
        (4, 11, [3, 7, 10]),
        (2, 13, [12]),
        (13, 2, [0] * 5 + [1] * 7),
    ],
)
def test_evenly_spaced_layers_keep_their_relative_depth(ours: int, theirs: int, expected: list[int]) -> None:
    """Student layer i of n goes to the teacher's round(i * m / n), the last always to the last."""
    student, teacher = outputs(*[(2, 3, 2, 2)] * ours), outputs(*[(2, 3, 2, 2)] * theirs, seed=1)
    by_hand = HiddenStates(layers=tuple(zip(range(1, ours), expected, strict=True)))
    found = value(HiddenStates(layers="evenly_spaced"), student, teacher)
    assert float(found) == pytest.approx(float(value(by_hand, student, teacher)), rel=1e-6)


MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 0, 0, 0, 0]])  # a text of four tokens and one of a single token


def per_text(student: torch.Tensor, teacher: torch.Tensor, measure: Callable[[np.ndarray, np.ndarray], float]) -> float:
    """The mean over texts of what `measure` says of their real tokens."""
    kept = [(array(student)[index, :length], array(teacher)[index, :length]) for index, length in ((0, 4), (1, 1))]
    return float(np.mean([measure(*pair) for pair in kept]))


def masked(loss: Loss, student: Any, teacher: Any, modules: torch.nn.Module | None = None) -> torch.Tensor:
    return loss.compute(student, teacher, {"attention_mask": MASK}, modules)


def test_hidden_states_of_texts_leave_padding_out() -> None:
    student, teacher = outputs((2, 5, 4), (2, 5, 4)), outputs((2, 5, 4), (2, 5, 4), seed=1)
    loss = HiddenStates(layers=((0, 0), (1, 1)))
    expected = np.mean(
        [
            per_text(ours, theirs, lambda a, b: ((a - b) ** 2).mean())
            for ours, theirs in zip(student.hidden_states, teacher.hidden_states, strict=True)
        ]
    )
    found = masked(loss, student, teacher)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    found.backward()
    for state in student.hidden_states:
        assert state.grad[~MASK.bool()].abs().sum() == 0
        assert (state.grad[MASK.bool()].abs().sum(dim=1) > 0).all()


def test_hidden_states_projects_texts() -> None:
    student, teacher = outputs((2, 5, 4)), outputs((2, 5, 6), seed=1)
    modules = HiddenStates().modules(student, teacher, TRAINING)
    assert modules is not None
    (projection,) = modules.children()
    weight, bias = array(projection.weight), array(projection.bias)  # type: ignore[arg-type]
    expected = per_text(
        student.hidden_states[0], teacher.hidden_states[0], lambda a, b: ((a @ weight.T + bias - b) ** 2).mean()
    )
    assert float(masked(HiddenStates(), student, teacher, modules)) == pytest.approx(expected, rel=1e-5)


# -- cosine_embedding


def one_minus_cosine(a: np.ndarray, b: np.ndarray) -> float:
    cosines = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return float((1 - cosines).mean())


def test_cosine_embedding_is_the_angle_of_the_last_real_tokens() -> None:
    student, teacher = outputs((2, 5, 9), (2, 5, 4)), outputs((2, 5, 7), (2, 5, 4), seed=1)
    expected = per_text(student.hidden_states[-1], teacher.hidden_states[-1], one_minus_cosine)
    assert float(masked(CosineEmbedding(), student, teacher)) == pytest.approx(expected, rel=1e-5)
    whole = one_minus_cosine(array(student.hidden_states[-1]), array(teacher.hidden_states[-1]))
    assert float(value(CosineEmbedding(), student, teacher)) == pytest.approx(whole, rel=1e-5)


def test_cosine_embedding_is_torchs_for_texts_of_one_length() -> None:
    """DistilBERT's code: CosineEmbeddingLoss of the selected tokens, target 1."""
    student, teacher = outputs((2, 5, 4)), outputs((2, 5, 4), seed=1)
    pair = [one.hidden_states[0].flatten(0, 1) for one in (student, teacher)]
    expected = torch.nn.CosineEmbeddingLoss()(*pair, torch.ones(10))
    assert float(value(CosineEmbedding(), student, teacher)) == pytest.approx(float(expected), rel=1e-6)


def test_cosine_embedding_of_feature_maps_is_taken_over_channels() -> None:
    student, teacher = outputs((2, 3, 4, 2)), outputs((2, 3, 4, 2), seed=1)
    places = [np.moveaxis(array(one.hidden_states[0]), 1, -1) for one in (student, teacher)]
    assert float(value(CosineEmbedding(), student, teacher)) == pytest.approx(one_minus_cosine(*places), rel=1e-5)


def test_cosine_embedding_needs_equal_widths() -> None:
    with pytest.raises(ModelError, match=r"\(5, 4\) in the student and \(5, 6\) in the teacher") as caught:
        value(CosineEmbedding(), outputs((2, 5, 4)), outputs((2, 5, 6)))
    assert "hidden_states, which learns a projection" in str(caught.value)


# -- attention_transfer


def test_attention_transfer_of_texts_leaves_padding_out() -> None:
    student, teacher = outputs((2, 5, 4)), outputs((2, 5, 6), seed=1)

    def maps_apart(a: np.ndarray, b: np.ndarray) -> float:
        ours, theirs = ((one**2).sum(axis=1) for one in (a, b))
        return float(np.linalg.norm(ours / np.linalg.norm(ours) - theirs / np.linalg.norm(theirs)) / 2)

    expected = per_text(student.hidden_states[0], teacher.hidden_states[0], maps_apart)
    assert float(masked(AttentionTransfer(layers="last"), student, teacher)) == pytest.approx(expected, rel=1e-5)


def attention(state: torch.Tensor) -> np.ndarray:
    q = (array(state) ** 2).sum(axis=1).reshape(len(state), -1)
    return q / np.linalg.norm(q, axis=1, keepdims=True)


def test_attention_transfer_is_the_papers_formula() -> None:
    """Equation 2 without its cross entropy, beta 1: 1/2 * sum over layers of the L2 distance of normalised maps."""
    student, teacher = outputs((2, 3, 4, 4), (2, 5, 2, 2)), outputs((2, 8, 4, 4), (2, 9, 2, 2), seed=1)
    expected = sum(
        np.linalg.norm(attention(ours) - attention(theirs), axis=1).mean() / 2
        for ours, theirs in zip(student.hidden_states, teacher.hidden_states, strict=True)
    )
    found = value(AttentionTransfer(layers=((0, 0), (1, 1))), student, teacher)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_attention_transfer_by_hand() -> None:
    """The student looks at one corner, the teacher at the other: the distance of orthogonal unit vectors is sqrt 2."""
    corners = torch.zeros(2, 1, 1, 2, 2)
    corners[0, ..., 0, 0], corners[1, ..., 1, 1] = 5.0, -0.1
    student, teacher = (ImageClassifierOutput(hidden_states=(corner,)) for corner in corners)
    found = AttentionTransfer(layers="last").compute(student, teacher, {}, None)
    assert float(found) == pytest.approx(2**0.5 / 2, rel=1e-6)


def test_attention_transfer_ignores_magnitude_and_width() -> None:
    student = outputs((2, 3, 4, 4))
    louder = ImageClassifierOutput(hidden_states=(torch.cat([7 * student.hidden_states[0]] * 2, dim=1).detach(),))
    assert float(value(AttentionTransfer(layers="last"), student, louder)) == pytest.approx(0, abs=1e-6)


def test_attention_transfer_resizes_maps() -> None:
    student, teacher = outputs((2, 3, 2, 2)), outputs((2, 3, 4, 4), seed=1)
    pooled = (array(teacher.hidden_states[0]) ** 2).sum(axis=1).reshape(2, 2, 2, 2, 2).mean(axis=(2, 4)).reshape(2, -1)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    expected = np.linalg.norm(attention(student.hidden_states[0]) - pooled, axis=1).mean() / 2
    assert float(value(AttentionTransfer(layers="last"), student, teacher)) == pytest.approx(expected, rel=1e-5)


# -- all

ALL = [HiddenStates(), AttentionTransfer(layers="last"), CosineEmbedding()]
by_kind = {"ids": lambda loss: loss.kind}


@pytest.mark.parametrize("loss", ALL, **by_kind)
def test_an_identical_student_costs_nothing_and_learns_nothing_wrong(loss: Loss) -> None:
    student, teacher = outputs((2, 3, 4, 4)), outputs((2, 3, 4, 4))
    found = value(loss, student, teacher)
    found.backward()
    assert float(found) == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(student.hidden_states[0].grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
@pytest.mark.parametrize("loss", ALL, **by_kind)
def test_dead_and_loud_layers_stay_finite(loss: Loss, scale: float, dtype: torch.dtype) -> None:
    student, teacher = outputs((2, 3, 4, 4), dtype=dtype), outputs((2, 3, 4, 4), seed=1, dtype=dtype)
    state = (student.hidden_states[0].detach() * scale).requires_grad_()
    found = value(loss, ImageClassifierOutput(hidden_states=(state,)), teacher)
    found.backward()
    assert found.dtype == torch.float32
    assert torch.isfinite(found)
    assert state.grad is not None
    assert torch.isfinite(state.grad).all()


@pytest.mark.parametrize("loss", ALL, **by_kind)
def test_no_gradient_reaches_the_teacher(loss: Loss) -> None:
    student, teacher = outputs((2, 3, 4, 4)), outputs((2, 3, 4, 4), seed=1)
    value(loss, student, teacher).backward()
    assert teacher.hidden_states[0].grad is None
    assert student.hidden_states[0].grad.abs().sum() > 0


@pytest.mark.parametrize("loss", ALL, **by_kind)
def test_what_cannot_be_compared_is_refused(loss: Loss) -> None:
    maps, tokens = outputs((2, 3, 4, 4)), outputs((2, 3, 4))
    with pytest.raises(ModelError, match="feature maps, the other tokens"):
        value(loss, maps, tokens)
    with pytest.raises(ModelError, match="3 tokens and the teacher 5"):
        value(loss, tokens, outputs((2, 5, 4)))
    with pytest.raises(ModelError, match="the student gives no hidden states"):
        value(loss, ImageClassifierOutput(logits=torch.zeros(1, 2)), maps)


@pytest.mark.parametrize("loss", ALL, **by_kind)
def test_a_text_without_tokens_costs_nothing(loss: Loss) -> None:
    student, teacher = outputs((2, 5, 4)), outputs((2, 5, 4), seed=1)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    found = loss.compute(student, teacher, {"attention_mask": mask}, None)
    first = [ImageClassifierOutput(hidden_states=(one.hidden_states[0][:1],)) for one in (student, teacher)]
    alone = loss.compute(first[0], first[1], {"attention_mask": mask[:1]}, None)
    assert float(found) == pytest.approx(float(alone) / 2, rel=1e-5)
    found.backward()
    assert torch.isfinite(student.hidden_states[0].grad).all()


@pytest.mark.parametrize("cls", [HiddenStates, AttentionTransfer])
def test_layers_that_are_not_there_are_refused(cls: Callable[..., Loss]) -> None:
    maps = outputs((2, 3, 4, 4))
    with pytest.raises(ModelError, match=r"layer 3 of the teacher, which has layers 0 to 0"):
        value(cls(layers=((0, 3),)), maps, maps)
    with pytest.raises(ModelError, match=r"layer -2 of the student, which has layers 0 to 0"):
        value(cls(layers=((-2, 0),)), maps, maps)


def test_layers_come_from_yaml_as_pairs() -> None:
    spec = HiddenStates.model_validate({"kind": "hidden_states", "layers": [[1, 2], [-1, -1]]})
    assert spec.layers == ((1, 2), (-1, -1))
    assert hash(spec) == hash(HiddenStates(layers=((1, 2), (-1, -1))))
    assert canonical_json(spec.model_dump(mode="json"))
    for wrong in ("first", [[1]], [1, 2], []):
        with pytest.raises(ValidationError):
            HiddenStates.model_validate({"kind": "hidden_states", "layers": wrong})


@pytest.mark.parametrize("layers", ["last", "evenly_spaced"])
@pytest.mark.parametrize("cls", [HiddenStates, AttentionTransfer])
def test_real_models_of_every_family(
    cls: Callable[..., Loss], layers: str, tiny_model: Callable[[str], PreTrainedModel], family: str
) -> None:
    model = tiny_model(family)
    pixels = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    answer = model(pixels, output_hidden_states=True)
    loss = cls(layers=layers)
    assert loss.modules(answer, answer, TRAINING) is None
    if cls is AttentionTransfer and layers == "last" and answer.hidden_states[-1].shape[2:] == (1, 1):
        with pytest.raises(ModelError, match="a single place"):
            value(loss, answer, answer)
        return
    assert float(value(loss, answer, answer)) == pytest.approx(0, abs=1e-6)
    other = model(pixels + 1, output_hidden_states=True)
    assert float(value(loss, other, answer)) > 0


def test_a_narrow_convolutional_student_learns_from_a_wide_one(tiny_model: Callable[[str], PreTrainedModel]) -> None:
    """ResNet and ConvNeXt differ in widths and map sizes; the projections must bring them together."""
    pixels = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    student = tiny_model("convnext")
    teacher = tiny_model("resnet")(pixels, output_hidden_states=True)
    loss = HiddenStates(layers="evenly_spaced")
    torch.manual_seed(0)
    modules = loss.modules(student(pixels, output_hidden_states=True), teacher, TRAINING)
    assert modules is not None
    optimizer = torch.optim.Adam([*student.parameters(), *modules.parameters()], lr=3e-3)
    found = []
    for _ in range(30):
        optimizer.zero_grad()
        error = value(loss, student(pixels, output_hidden_states=True), teacher, modules)
        error.backward()
        optimizer.step()
        found.append(float(error))
    assert found[-1] < found[0] / 2
