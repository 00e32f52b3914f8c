"""Students of text encoders: blocks, widths, and slices of the teacher's weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from edgeforge.architectures import architecture_of
from edgeforge.architectures.bert import Bert
from edgeforge.core.errors import ModelError
from edgeforge.core.task import Interface, model_inputs
from edgeforge.models import loading
from edgeforge.models.building import build_new
from edgeforge.models.surgery import keep_channels
from edgeforge.students.layers import Layers
from edgeforge.students.width import Width
from edgeforge.tasks.image_classification import ImageClassification

if TYPE_CHECKING:
    from conftest import Mails

ENCODERS = ["bert", "distilbert", "electra", "roberta"]

every_encoder = pytest.mark.parametrize("family", ENCODERS)


@pytest.fixture
def inputs(mails: Mails) -> dict[str, torch.Tensor]:
    return model_inputs(mails.data.batch("test", range(6)))


def teacher_of(mails: Mails, family: str) -> PreTrainedModel:
    return loading.load(mails.torch(family).path)


def logits(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits  # type: ignore[no-any-return]


@every_encoder
@pytest.mark.parametrize(("spec", "kept"), [(Layers(keep=(0, 2)), [0, 2]), (Layers(every=2), [0, 2])])
def test_blocks_that_stay_carry_the_teachers_weights(
    family: str, spec: Layers, kept: list[int], mails: Mails, inputs: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    teacher = teacher_of(mails, family)
    cls: Any = architecture_of(teacher.config)
    student = spec.build(teacher, mails.task, mails.data.interface)
    (ours,), (theirs,) = cls.stages(student), cls.stages(teacher)
    assert [len(ours), student.config.num_hidden_layers] == [2, 2]
    for block, index in zip(ours, kept, strict=True):
        for name, tensor in block.state_dict().items():
            assert torch.equal(tensor, theirs[index].state_dict()[name])
    loading.save(student, tmp_path)
    assert not (tmp_path / "shapes.json").exists(), "its config says all of it"
    assert torch.equal(logits(loading.load(tmp_path), inputs), logits(student, inputs))
    del theirs[1]  # skipping the block is all that happened: embeddings and classifier are the teacher's
    assert torch.equal(logits(teacher, inputs), logits(student, inputs))


@every_encoder
def test_all_of_the_teachers_weights_are_the_teacher(
    family: str, mails: Mails, inputs: dict[str, torch.Tensor]
) -> None:
    teacher = teacher_of(mails, family)
    student = Width(multiple=1, weights="teacher").build(teacher, mails.task, mails.data.interface)
    assert torch.equal(logits(student, inputs), logits(teacher, inputs))


@every_encoder
def test_dimensions_nobody_uses_are_the_ones_left_behind(
    family: str, mails: Mails, inputs: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """A student of half the width, hidden in a teacher at random places, is found again and answers the same."""
    teacher = teacher_of(mails, family)
    hidden = Width(multiple=0.5).build(teacher, mails.task, mails.data.interface)
    places = plant(hidden, teacher)
    student = Width(multiple=0.5, weights="teacher").build(teacher, mails.task, mails.data.interface)
    found = dict(student.named_parameters())
    for name, tensor in hidden.named_parameters():
        assert torch.equal(found[name], tensor), name
    assert places != list(range(16))
    loading.save(student, tmp_path)
    assert torch.equal(logits(loading.load(tmp_path), inputs), logits(hidden, inputs))


def plant(student: PreTrainedModel, teacher: PreTrainedModel) -> list[int]:
    """Write the student's weights into some rows and columns of the teacher's, zeros elsewhere; the hidden places."""
    generator = torch.Generator().manual_seed(3)

    def some(of: int, count: int) -> torch.Tensor:
        return torch.randperm(of, generator=generator)[:count].sort().values

    heads = (some(4, 2)[:, None] * 8 + torch.arange(8)).flatten()  # 4 heads of 8 channels in the teacher
    places = {(32, 16): some(32, 16), (48, 24): some(48, 24), (16, 8): some(16, 8)}
    with torch.no_grad():
        for (name, whole), part in zip(teacher.named_parameters(), student.parameters(), strict=True):
            torch.nn.init.normal_(part, generator=generator)
            whole.zero_()
            indices = []
            for axis, (size, fewer) in enumerate(zip(whole.shape, part.shape, strict=True)):
                projection = any(word in name for word in ("query", "key", "value", "q_lin", "k_lin", "v_lin"))
                output = "attention.output.dense.weight" in name or "out_lin.weight" in name
                by_head = (projection and axis == 0) or (output and axis == 1)
                fixed = torch.arange(size) if size == fewer else places[size, fewer]
                indices.append(heads if by_head else fixed)
            whole[torch.meshgrid(*indices, indexing="ij")] = part
    return places[32, 16].tolist()


def trained(model: PreTrainedModel, mails: Mails, *, steps: int, learning_rate: float, target: Any) -> PreTrainedModel:
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    order = torch.randint(0, 200, (steps, 16), generator=torch.Generator().manual_seed(0))
    model.eval()  # without dropout: what is compared is where training starts from
    for rows in order:
        batch = mails.data.batch("train", rows.tolist())
        target(model(**model_inputs(batch)).logits, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def divergence(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.kl_div(
        ours.log_softmax(-1), theirs.log_softmax(-1), reduction="batchmean", log_target=True
    )


@pytest.mark.parametrize("blocks", [{}, {"keep": (0, 2)}])
@pytest.mark.parametrize("family", ["bert", "electra"])
def test_the_teachers_weights_are_a_better_start_than_new_ones(
    family: str, blocks: dict[str, Any], mails: Mails
) -> None:
    """On a teacher that learned the mails: nearer to it after the same few steps, from several seeds."""

    def labels(ours: torch.Tensor, batch: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(ours, batch["labels"])

    teacher = trained(teacher_of(mails, family), mails, steps=80, learning_rate=3e-3, target=labels)
    test = mails.data.batch("test", range(80))
    goal = logits(teacher, model_inputs(test))
    assert (goal.argmax(-1) == test["labels"]).float().mean() > 0.9, "the teacher must have learned something"

    def imitate(ours: torch.Tensor, batch: Any) -> torch.Tensor:
        return divergence(ours, logits(teacher, model_inputs(batch)))

    def distance(weights: str, seed: int) -> float:
        torch.manual_seed(seed)
        spec = Width(multiple=0.5, weights=weights, **blocks)  # type: ignore[arg-type]
        student = spec.build(teacher, mails.task, mails.data.interface)
        trained(student, mails, steps=10, learning_rate=1e-3, target=imitate)
        return float(divergence(logits(student, model_inputs(test)), goal))

    taken, new = distance("teacher", 0), [distance("random", seed) for seed in range(3)]
    assert taken < 0.7 * min(new), (taken, new)


def test_the_teachers_weights_draw_no_random_numbers_into_the_student(mails: Mails) -> None:
    students = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        spec = Width(multiple=0.5, weights="teacher")
        students.append(spec.build(teacher_of(mails, "bert"), mails.task, mails.data.interface))
    for ours, theirs in zip(*(student.parameters() for student in students), strict=True):
        assert torch.equal(ours, theirs)


def test_a_vision_transformer_gives_its_weights_too(
    tiny_model: Callable[[str], PreTrainedModel], tiny_interface: Interface, tmp_path: Path
) -> None:
    teacher, task = tiny_model("vit"), ImageClassification()
    images = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = Width(multiple=1, weights="teacher").build(teacher, task, tiny_interface)
    assert torch.equal(logits(whole, {"pixel_values": images}), logits(teacher, {"pixel_values": images}))
    half = Width(multiple=0.5, weights="teacher", every=2).build(teacher, task, tiny_interface)
    assert (half.config.hidden_size, half.config.num_attention_heads, half.config.num_hidden_layers) == (16, 2, 2)
    theirs = teacher.get_parameter("classifier.weight")
    columns = [
        any(torch.equal(row, column) for column in theirs.T) for row in half.get_parameter("classifier.weight").T
    ]
    assert all(columns)
    loading.save(half, tmp_path)
    assert torch.equal(logits(loading.load(tmp_path), {"pixel_values": images}), logits(half, {"pixel_values": images}))


@pytest.mark.parametrize("family", ["resnet", "convnext", "mobilenet_v2"])
def test_convolutions_do_not_give_theirs(
    family: str, tiny_model: Callable[[str], PreTrainedModel], tiny_interface: Interface
) -> None:
    spec = Width(multiple=0.5, weights="teacher")
    for refused in (
        lambda: spec.check(tiny_model(family).config),
        lambda: spec.build(tiny_model(family), ImageClassification(), tiny_interface),
    ):
        with pytest.raises(ModelError, match=rf"narrower {family} cannot take over(.|\n)*structure: channels"):
            refused()


def test_heads_stay_whole(mails: Mails) -> None:
    teacher = teacher_of(mails, "bert")
    spec = Width(multiple=0.4, weights="teacher")  # 2 heads of 6
    with pytest.raises(ModelError, match=r"heads of 6 out of heads of 8(.|\n)*0.25, 0.5, 0.75, 1"):
        spec.check(teacher.config)
    with pytest.raises(ModelError, match="heads stay whole"):
        spec.build(teacher, mails.task, mails.data.interface)
    assert Width(multiple=0.4).build(teacher, mails.task, mails.data.interface).config.hidden_size == 12


def test_a_teacher_with_pruned_heads_is_refused_not_mangled(mails: Mails) -> None:
    teacher = teacher_of(mails, "bert")
    for block in teacher.bert.encoder.layer:
        attention = block.attention
        for layer in (attention.self.query, attention.self.key, attention.self.value):
            keep_channels(layer, range(16), outputs=True)
        keep_channels(attention.output.dense, range(16), outputs=False)
        attention.self.num_attention_heads, attention.self.all_head_size = 2, 16
    logits(teacher, model_inputs(mails.data.batch("test", range(2))))
    with pytest.raises(ModelError, match="prune afterwards"):
        Width(multiple=0.5, weights="teacher").build(teacher, mails.task, mails.data.interface)


def test_a_teacher_with_pruned_neurons_gives_those_it_has(mails: Mails) -> None:
    teacher = teacher_of(mails, "bert")
    for block in teacher.bert.encoder.layer:
        keep_channels(block.intermediate.dense, range(30), outputs=True)
        keep_channels(block.output.dense, range(30), outputs=False)
    student = Width(multiple=0.5, weights="teacher").build(teacher, mails.task, mails.data.interface)
    assert student.config.intermediate_size == 15
    rows = student.bert.encoder.layer[0].intermediate.dense.bias
    assert set(rows.tolist()) <= set(teacher.bert.encoder.layer[0].intermediate.dense.bias.tolist())


def test_rows_of_the_vocabulary_that_no_token_has_are_left_behind(
    mails: Mails, inputs: dict[str, torch.Tensor]
) -> None:
    """Published vocabularies are often padded to a round number, and positions are more than a task's texts have."""
    spec = Bert(**mails.tiny["bert"])
    config = spec.config(mails.data.interface)
    config.vocab_size += 7
    teacher = build_new(config, mails.task, mails.data.interface)
    student = Width(multiple=1, weights="teacher").build(teacher, mails.task, mails.data.interface)
    assert student.config.vocab_size == config.vocab_size - 7
    assert torch.equal(logits(student, inputs), logits(teacher, inputs))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"multiple": 0.5, "keep": [0], "every": 2}, "either keep or every"),
        ({"multiple": 0.5, "keep": [2, 1]}, "keep must rise"),
        ({"multiple": 0.5, "weights": "mine"}, "'random' or 'teacher'"),
    ],
)
def test_widths_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Width.model_validate(fields)


def test_blocks_beyond_the_last_are_refused_before_any_work(mails: Mails) -> None:
    config = teacher_of(mails, "distilbert").config
    for spec, multiple in itertools.product((Layers, Width), (0.5,)):
        fields = {"multiple": multiple} if spec is Width else {}
        with pytest.raises(ModelError, match="no block 3: the teacher has 3"):
            spec(keep=(0, 3), **fields).check(config)  # type: ignore[call-arg]
