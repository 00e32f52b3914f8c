"""Students of decoders: blocks, widths, and slices of the teacher's weights with keys shared by queries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from edgeforge.core.errors import ModelError
from edgeforge.core.task import Input, Interface, Tokens
from edgeforge.models import loading
from edgeforge.students.config import Config
from edgeforge.students.layers import Layers
from edgeforge.students.width import Width

FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]

every_decoder = pytest.mark.parametrize("family", FAMILIES)

TASK: Any = SimpleNamespace(auto_class="AutoModelForCausalLM")
INTERFACE = Interface(
    inputs=tuple(Input(name, (32,), "int64", variable=True, fill=1) for name in ("input_ids", "attention_mask")),
    output_name="logits",
    labels=(),
    tokens=Tokens(352, 32, 2),
)
IDS = torch.randint(3, 352, (3, 14), generator=torch.Generator().manual_seed(0))


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits  # type: ignore[no-any-return]


def reloads_and_writes(student: PreTrainedModel, folder: Path) -> None:
    loading.save(student, folder)
    assert not (folder / "shapes.json").exists()
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert torch.equal(logits(plain), logits(student))
    said = [
        plain.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=8, do_sample=False, use_cache=cached)
        for cached in (True, False)
    ]
    assert torch.equal(*said)
    assert plain.generation_config.eos_token_id == plain.config.eos_token_id == 2


@every_decoder
@pytest.mark.parametrize("spec", [Layers(keep=(0, 2)), Layers(every=2)])
def test_blocks_that_stay_carry_the_teachers_weights(
    family: str, spec: Layers, tiny_lm: Callable[[str], PreTrainedModel], tmp_path: Path
) -> None:
    teacher = tiny_lm(family)
    student = spec.build(teacher, TASK, INTERFACE)
    assert student.config.num_hidden_layers == len(student.model.layers) == 2
    reloads_and_writes(student, tmp_path)
    del teacher.model.layers[1]
    teacher.model.layers[1].self_attn.layer_idx = 1
    teacher.config.num_hidden_layers = 2
    assert torch.equal(logits(teacher), logits(student))


@every_decoder
def test_all_of_the_teachers_weights_are_the_teacher(family: str, tiny_lm: Callable[[str], PreTrainedModel]) -> None:
    teacher = tiny_lm(family)
    student = Width(multiple=1, weights="teacher").build(teacher, TASK, INTERFACE)
    assert torch.equal(logits(student), logits(teacher))


@every_decoder
def test_dimensions_nobody_uses_are_the_ones_left_behind(
    family: str, tiny_lm: Callable[[str], PreTrainedModel], tmp_path: Path
) -> None:
    """A student of half the width, hidden in a teacher at random places, is found again and answers the same."""
    teacher = tiny_lm(family)
    hidden = Width(multiple=0.5).build(teacher, TASK, INTERFACE)
    sizes = (hidden.config.hidden_size, hidden.config.num_attention_heads, hidden.config.num_key_value_heads)
    assert (*sizes, hidden.config.intermediate_size) == (32, 2, 1, 64)
    assert hidden.config.head_dim == teacher.model.layers[0].self_attn.head_dim
    plant(hidden, teacher)
    student = Width(multiple=0.5, weights="teacher").build(teacher, TASK, INTERFACE)
    found = dict(student.named_parameters())
    for name, tensor in hidden.named_parameters():
        assert torch.equal(found[name], tensor), name
    assert torch.equal(logits(student), logits(hidden))
    assert (student.get_output_embeddings().weight is student.get_input_embeddings().weight) is (
        teacher.config.tie_word_embeddings
    )
    reloads_and_writes(student, tmp_path)


def plant(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Write the student's weights into some rows and columns of the teacher's, zeros elsewhere."""
    generator = torch.Generator().manual_seed(3)
    size = student.config.head_dim

    def some(of: int, count: int) -> torch.Tensor:
        return torch.randperm(of, generator=generator)[:count].sort().values

    def channels(heads: list[int]) -> torch.Tensor:
        return (torch.tensor(heads)[:, None] * size + torch.arange(size)).flatten()

    hidden, neurons = some(64, 32), {block: some(128, 64) for block in range(3)}
    with torch.no_grad():
        for (name, whole), part in zip(teacher.named_parameters(), student.parameters(), strict=True):
            torch.nn.init.normal_(part, generator=generator)
            whole.zero_()
            block = int(name.split(".")[2]) if ".layers." in name else 0
            key = (block + 1) % 2
            own = {
                "q_proj": [channels([2 * key, 2 * key + 1]), hidden],
                "k_proj": [channels([key]), hidden],
                "v_proj": [channels([key]), hidden],
                "o_proj": [hidden, channels([2 * key, 2 * key + 1])],
                "gate_proj": [neurons[block], hidden],
                "up_proj": [neurons[block], hidden],
                "down_proj": [hidden, neurons[block]],
                "embed_tokens": [torch.arange(352), hidden],
                "lm_head": [torch.arange(352), hidden],
                "q_norm": [torch.arange(size)],
                "k_norm": [torch.arange(size)],
            }.get(name.split(".")[-2], [hidden])
            whole[torch.meshgrid(*own[: whole.dim()], indexing="ij")] = part


def test_of_each_key_that_stays_the_best_queries_stay(tiny_lm: Callable[[str], PreTrainedModel]) -> None:
    """Where a student shares keys among fewer queries than its teacher does."""
    teacher = tiny_lm("llama")
    config = teacher.config
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 9, 3, 16
    torch.manual_seed(0)
    teacher = AutoModelForCausalLM.from_config(config).eval()
    for layer in teacher.model.layers:
        attention = layer.self_attn
        for head in (1, 2, 6, 8):  # of group 0, and of group 2; nothing in group 1
            attention.q_proj.weight.data[16 * head : 16 * head + 16] *= 50
        for key in (0, 2):
            attention.v_proj.weight.data[16 * key : 16 * key + 16] *= 50
    student = Width(multiple=0.5, weights="teacher").build(teacher, TASK, INTERFACE)
    assert (student.config.num_attention_heads, student.config.num_key_value_heads) == (4, 2)
    ours, theirs = student.model.layers[1].self_attn, teacher.model.layers[1].self_attn
    for projection, heads in (("q_proj", (1, 2, 6, 8)), ("k_proj", (0, 2)), ("v_proj", (0, 2))):
        mine, other = getattr(ours, projection).weight, getattr(theirs, projection).weight
        for place, head in enumerate(heads):
            for row in range(16):
                rest = set(other[16 * head + row].tolist())
                assert set(mine[16 * place + row].tolist()) <= rest


def test_more_queries_on_a_key_than_the_teacher_has_are_refused(tiny_lm: Callable[[str], PreTrainedModel]) -> None:
    teacher = tiny_lm("llama")
    config = teacher.config
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 9, 3, 16
    teacher = AutoModelForCausalLM.from_config(config).eval()
    spec = Width(multiple=0.4, weights="teacher")  # 4 queries on 1 key
    for refused in (lambda: spec.check(config), lambda: spec.build(teacher, TASK, INTERFACE)):
        with pytest.raises(
            ModelError, match=r"4 query heads share a key, and in the teacher 3 do(.|\n)*0.3333, 0.6667, 1"
        ):
            refused()
    assert Width(multiple=0.4).build(teacher, TASK, INTERFACE).config.num_attention_heads == 4


@every_decoder
def test_a_pruned_teacher_gives_what_it_has(family: str, tiny_lm: Callable[[str], PreTrainedModel]) -> None:
    from edgeforge.structures._blocks import blocks

    teacher = tiny_lm(family)
    for block in blocks(teacher):
        block.keep_neurons(range(0, 128, 2))
        block.keep_groups([1])
    student = Width(multiple=1, weights="teacher").build(teacher, TASK, INTERFACE)
    assert (student.config.intermediate_size, student.config.num_key_value_heads) == (64, 1)
    assert torch.equal(logits(student), logits(teacher))
    half = Width(multiple=0.5, weights="teacher", every=2).build(teacher, TASK, INTERFACE)
    assert (half.config.num_hidden_layers, half.config.intermediate_size) == (2, 32)


def test_a_student_of_another_family_ends_its_texts_alike(
    tiny_lm: Callable[[str], PreTrainedModel], tmp_path: Path
) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    spec = Config.model_validate({"kind": "config", "architecture": "qwen3", **sizes, "intermediate_size": 64})
    student = spec.build(tiny_lm("llama"), TASK, INTERFACE)
    assert student.config.model_type == "qwen3"
    reloads_and_writes(student, tmp_path)
