"""Heads, neurons and blocks of decoders: against smaller models built by hand, on disk, and writing with a cache."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import __version__ as transformers_version

from edgeforge.core.errors import ModelError
from edgeforge.criteria.activation import Activation
from edgeforge.criteria.drop_loss import DropLoss
from edgeforge.criteria.magnitude import Magnitude
from edgeforge.criteria.random import Random
from edgeforge.criteria.taylor import Taylor
from edgeforge.models import loading
from edgeforge.models.footprint import footprint
from edgeforge.structures import Structure
from edgeforge.structures._blocks import blocks
from edgeforge.structures.attention_heads import AttentionHeads
from edgeforge.structures.channels import Channels
from edgeforge.structures.ffn_width import FfnWidth
from edgeforge.structures.layers import Layers

ROWS, COLUMNS = 0, 1
Parts = dict[str, tuple[int, list[list[int]]]]
"""End of a layer's name -> (axis, what stays of it in each block)."""


def smaller(model: PreTrainedModel, parts: Parts, **sizes: Any) -> PreTrainedModel:
    """A model of these sizes built anew, with those parts of the other's weights: shares nothing with pruning."""
    config = copy.deepcopy(model.config)
    for name, value in sizes.items():
        setattr(config, name, value)
    made = AutoModelForCausalLM.from_config(config)
    state = {}
    for name, tensor in model.state_dict().items():
        found = re.search(r"layers\.(\d+)\..*\.(\w+)\.(weight|bias)$", name)
        part = parts.get(found[2]) if found else None
        if found and part is not None and (part[0] == ROWS or found[3] == "weight"):
            tensor = tensor.index_select(part[0], torch.tensor(part[1][int(found[1])]))
        state[name] = tensor
    made.load_state_dict(state, strict=True)
    return made.eval()


def channels(heads: list[int], size: int) -> list[int]:
    return [head * size + offset for head in heads for offset in range(size)]


def same(writer: Any, other: PreTrainedModel, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(writer.answer(), writer.answer(other), rtol=0, atol=tolerance)


def reloads_and_writes(writer: Any, folder: Path) -> None:
    """By the library alone, bit by bit; and token by token with a cache what it writes without one."""
    loading.save(writer.model, folder / "saved")
    assert not (folder / "saved" / "shapes.json").exists()
    plain, info = AutoModelForCausalLM.from_pretrained(folder / "saved", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for loaded in (plain.eval(), loading.load(folder / "saved")):
        assert (writer.answer(loaded) - writer.answer()).abs().max().item() == 0.0
    asked = writer.data.batch("test", [3])["input_ids"]  # a window without padding
    for model in (writer.model, plain):
        said = {
            cached: model.generate(
                asked, attention_mask=torch.ones_like(asked), max_new_tokens=12, do_sample=False, use_cache=cached
            )
            for cached in (True, False)
        }
        assert said[True].shape[1] > asked.shape[1]
        assert torch.equal(said[True], said[False])


def test_the_neurons_with_the_smallest_weights_go_with_their_gates(writer: Any, tmp_path: Path) -> None:
    whole = copy.deepcopy(writer.model)
    removed = FfnWidth(ratio=0.6, round_to=32).prune(writer.model, Magnitude(), writer.job)
    assert removed["width"] == [128, 64]  # 51.2 stay, and 64 is nearer than 32
    kept = []
    for layer in whole.model.layers:
        mlp = layer.mlp
        squares = mlp.gate_proj.weight.square().sum(1) + mlp.up_proj.weight.square().sum(1)
        squares = (squares + mlp.down_proj.weight.square().sum(0)).tolist()
        kept.append(sorted(sorted(range(128), key=lambda neuron: -squares[neuron])[:64]))
        gone = [neuron for neuron in range(128) if neuron not in kept[-1]]
        mlp.down_proj.weight.data[:, gone] = 0
    parts: Parts = {"gate_proj": (ROWS, kept), "up_proj": (ROWS, kept), "down_proj": (COLUMNS, kept)}
    same(writer, smaller(whole, parts, intermediate_size=64))
    same(writer, whole, 1e-5)  # masking says what removing does
    reloads_and_writes(writer, tmp_path)


def head_squares(layer: Any, size: int, *, shared: bool) -> list[float]:
    """By query head, or, `shared`, by key/value head with its two query heads: all squared weights that go with it."""
    attention = layer.self_attn
    heads = [
        float(attention.q_proj.weight[size * head : size * head + size].square().sum())
        + float(attention.o_proj.weight[:, size * head : size * head + size].square().sum())
        for head in range(4)
    ]
    if not shared:
        return heads
    keys = [
        sum(
            float(one.weight[size * key : size * key + size].square().sum())
            for one in (attention.k_proj, attention.v_proj)
        )
        for key in range(2)
    ]
    return [heads[2 * key] + heads[2 * key + 1] + keys[key] for key in range(2)]


def test_a_key_goes_with_the_queries_that_share_it(writer: Any, tmp_path: Path) -> None:
    whole, size = copy.deepcopy(writer.model), blocks(writer.model)[0].head_size
    removed = AttentionHeads(ratio=0.5).prune(writer.model, Magnitude(), writer.job)
    assert (removed["heads"], removed["key_value_heads"]) == ([4, 2], [2, 1])
    squares = [head_squares(layer, size, shared=True) for layer in whole.model.layers]
    stays = [0 if one[0] > one[1] else 1 for one in squares]
    assert list(removed["kept"].values()) == [[key] for key in stays]
    queries = [channels([2 * key, 2 * key + 1], size) for key in stays]
    keys = [channels([key], size) for key in stays]
    parts: Parts = {
        "q_proj": (ROWS, queries),
        "k_proj": (ROWS, keys),
        "v_proj": (ROWS, keys),
        "o_proj": (COLUMNS, queries),
    }
    same(writer, smaller(whole, parts, num_attention_heads=2, num_key_value_heads=1, head_dim=size))
    for layer, kept in zip(whole.model.layers, queries, strict=True):
        layer.self_attn.o_proj.weight.data[:, [one for one in range(4 * size) if one not in kept]] = 0
    same(writer, whole, 1e-5)
    reloads_and_writes(writer, tmp_path)


def test_queries_go_alone_equally_many_of_each_group(writer: Any, tmp_path: Path) -> None:
    whole, size = copy.deepcopy(writer.model), blocks(writer.model)[0].head_size
    removed = AttentionHeads(keep=2, grouped="queries").prune(writer.model, Magnitude(), writer.job)
    assert (removed["heads"], removed["key_value_heads"]) == ([4, 2], [2, 2])
    kept = []
    for layer in whole.model.layers:
        squares = head_squares(layer, size, shared=False)
        kept.append([2 * group + (squares[2 * group + 1] > squares[2 * group]) for group in range(2)])
    assert list(removed["kept"].values()) == kept
    parts: Parts = {
        "q_proj": (ROWS, [channels(one, size) for one in kept]),
        "o_proj": (COLUMNS, [channels(one, size) for one in kept]),
    }
    same(writer, smaller(whole, parts, num_attention_heads=2, num_key_value_heads=2, head_dim=size))
    reloads_and_writes(writer, tmp_path)


def without(model: PreTrainedModel, gone: list[int]) -> PreTrainedModel:
    """A model built anew with the other blocks' weights, numbered on."""
    config = copy.deepcopy(model.config)
    stay = [block for block in range(config.num_hidden_layers) if block not in gone]
    config.num_hidden_layers = len(stay)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[block] for block in stay]
    made = AutoModelForCausalLM.from_config(config)
    state = {}
    for name, tensor in model.state_dict().items():
        found = re.fullmatch(r"(model\.layers\.)(\d+)(\..*)", name)
        if found is None:
            state[name] = tensor
        elif int(found[2]) in stay:
            state[f"{found[1]}{stay.index(int(found[2]))}{found[3]}"] = tensor
    made.load_state_dict(state, strict=True)
    return made.eval()


def test_drop_loss_takes_the_block_whose_loss_costs_least_and_then_judges_anew(writer: Any, tmp_path: Path) -> None:
    whole = copy.deepcopy(writer.model)
    first = min(range(3), key=lambda block: writer.loss(without(whole, [block])))
    others = [block for block in range(3) if block != first]
    second = min(others, key=lambda block: writer.loss(without(whole, [first, block])))
    removed = Layers(count=2).prune(writer.model, DropLoss(samples=100), writer.job)
    assert removed["kept"] == [block for block in others if block != second]
    same(writer, without(whole, sorted([first, second])))
    assert set(writer.data.asked) == {"train", "test"}  # the test windows are this test's own
    reloads_and_writes(writer, tmp_path)


@pytest.mark.parametrize(("steps", "taken"), [(1, [2]), (2, [1, 1]), (9, [1, 1])])
def test_blocks_are_judged_as_often_as_asked(steps: int, taken: list[int], writer_of: Any) -> None:
    writer = writer_of("llama")
    left, gone = list(range(3)), []
    for count in taken:
        costs = {block: writer.loss(without(writer.model, [*gone, block])) for block in left}
        gone += sorted(left, key=costs.__getitem__)[:count]
        left = [block for block in range(3) if block not in gone]
    removed = Layers(count=2, steps=steps).prune(writer.model, DropLoss(samples=100), writer.job)
    assert removed["kept"] == left


@pytest.mark.parametrize(
    ("depth", "count", "steps", "judged"), [(7, 5, 2, [7, 5]), (7, 5, 3, [7, 6, 4]), (7, 1, 4, [7])]
)
def test_steps_are_as_even_as_they_can_be(
    depth: int, count: int, steps: int, judged: list[int], writer_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = writer_of("llama")
    config = copy.deepcopy(writer.model.config)
    config.num_hidden_layers = depth
    seen: list[int] = []
    units = Random.units
    monkeypatch.setattr(
        Random, "units", lambda self, model, given, job: (seen.append(len(given)), units(self, model, given, job))[1]
    )
    removed = Layers(count=count, steps=steps).prune(AutoModelForCausalLM.from_config(config), Random(), writer.job)
    assert (seen, len(removed["kept"])) == (judged, depth - count)


def test_block_influence_is_the_cheap_choice(writer: Any) -> None:
    whole = copy.deepcopy(writer.model)
    batch = writer.data.batch("train", range(40))
    seen: dict[int, list[torch.Tensor]] = {}
    for number, layer in enumerate(whole.model.layers):
        layer.register_forward_hook(
            lambda _m, args, kwargs, out, number=number: seen.update({number: [args[0], out]}), with_kwargs=True
        )
    with torch.no_grad():
        whole(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    real = batch["attention_mask"].bool()
    influence = {
        number: 1 - float(torch.nn.functional.cosine_similarity(before[real], after[real], dim=-1).mean())
        for number, (before, after) in seen.items()
    }
    removed = Layers(count=1).prune(writer.model, Activation(samples=100), writer.job)
    assert removed["kept"] == sorted(sorted(influence, key=influence.__getitem__)[1:])


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("kept", [(0, 2), (0,), (2,)])
def test_each_block_keeps_its_kind_of_attention(
    family: str, kept: tuple[int, ...], writer_of: Any, tmp_path: Path
) -> None:
    writer = writer_of(family)
    config = copy.deepcopy(writer.model.config)
    config.update({"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1})
    types = ["full_attention", "sliding_attention", "sliding_attention"]
    config.layer_types = list(types)
    made = AutoModelForCausalLM.from_config(config).eval()
    made.load_state_dict(writer.model.state_dict())
    assert not torch.equal(writer.answer(made), writer.answer())
    writer.model = made
    wanted = without(made, [block for block in range(3) if block not in kept])
    Layers(keep=kept).prune(made, Random(), writer.job)
    assert made.config.layer_types == [types[block] for block in kept]
    same(writer, wanted)
    reloads_and_writes(writer, tmp_path)


@pytest.mark.parametrize("criterion", [Magnitude(), Taylor(samples=8), Activation(samples=8), Random()])
def test_one_after_the_other_and_trained_on(criterion: Any, writer: Any, tmp_path: Path) -> None:
    before = footprint(writer.model, writer.data.interface)["params"]
    for structure in (
        FfnWidth(ratio=0.25),
        AttentionHeads(ratio=0.5),
        Layers(count=1),
        FfnWidth(width=32),
        AttentionHeads(keep=1, grouped="queries"),
    ):
        removed = structure.prune(writer.model, criterion, writer.job)
        assert removed["params"][0] == before > removed["params"][1]
        before = removed["params"][1]
    config = writer.model.config
    assert (config.intermediate_size, config.num_attention_heads, config.num_key_value_heads) == (32, 1, 1)
    reloads_and_writes(writer, tmp_path)
    writer.model.train()(
        **{name: writer.data.batch("train", [0, 1])[name] for name in ("input_ids", "attention_mask")}
    )[0].sum().backward()
    assert all(parameter.grad is not None for parameter in writer.model.parameters())


def test_blocks_of_different_shapes_survive_the_disk(writer: Any, tmp_path: Path) -> None:
    """No config says them; ``shapes.json`` does."""
    first, second, third = blocks(writer.model)
    first.keep_neurons(range(96))
    second.keep_groups([1])
    third.keep_queries([0, 3])
    third.keep_neurons(range(0, 128, 2))
    loading.save(writer.model, tmp_path)
    assert (tmp_path / "shapes.json").exists()
    loaded = loading.load(tmp_path)
    assert (writer.answer(loaded) - writer.answer()).abs().max().item() == 0.0
    assert [block.neurons for block in blocks(loaded)] == [96, 128, 64]
    assert [(block.heads, block.groups) for block in blocks(loaded)] == [(4, 2), (2, 1), (2, 2)]


@pytest.mark.parametrize(("width", "said"), [(100, "no multiple of 32"), (96, "no multiple of 256"), (256, None)])
def test_it_warns_of_widths_that_gguf_has_no_blocks_for(width: int, said: str | None, writer_of: Any) -> None:
    writer = writer_of("llama")
    config = copy.deepcopy(writer.model.config)
    config.intermediate_size = 300
    FfnWidth(width=width).prune(AutoModelForCausalLM.from_config(config), Random(), writer.job)
    assert [said in warning for warning in writer.job.progress.warnings] == ([True] if said else [])


def test_it_warns_of_head_counts_that_a_later_library_refuses(writer_of: Any) -> None:
    writer = writer_of("llama")
    config = copy.deepcopy(writer.model.config)
    config.num_attention_heads = config.num_key_value_heads = 4
    model = AutoModelForCausalLM.from_config(config)
    if int(transformers_version.partition(".")[0]) < 5:
        AttentionHeads(keep=3).prune(model, Random(), writer.job)
        assert ["with 3 heads" in warning for warning in writer.job.progress.warnings] == [True]
        assert "1, 2" in writer.job.progress.warnings[0]


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (Layers(count=3), "none of 3 blocks"),
        (Layers(ratio=0.9), "none of 3 blocks"),
        (Layers(keep=(0, 3)), "there is no block 3"),
        (AttentionHeads(ratio=0.7), r"no key/value head of 2 in a block(.|\n)*`grouped: queries`"),
        (AttentionHeads(ratio=0.7, grouped="queries"), r"no query head in a group of 2(.|\n)*`grouped: whole`"),
        (AttentionHeads(keep=3), r"keep is 3, and 2 query heads share each key(.|\n)*2, 4"),
        (AttentionHeads(keep=3, grouped="queries"), r"keep is 3, and 2 groups keep equally many(.|\n)*2, 4"),
        (AttentionHeads(keep=1), "keep is 1, and 2 query heads share each key"),
        (AttentionHeads(keep=6), "keep is 6, and there are 4 heads"),
        (FfnWidth(width=200), "width is 200, and there are 128"),
        (FfnWidth(ratio=0.999), "would leave the feed-forward layer of a block with nothing"),
        (Channels(ratio=0.5), r"channels of a LlamaForCausalLM are not known(.|\n)*ffn_width, attention_heads"),
    ],
)
def test_too_much_is_refused(structure: Structure, message: str, writer_of: Any) -> None:
    writer = writer_of("llama")
    before = copy.deepcopy(writer.model.state_dict())
    with pytest.raises(ModelError, match=message):
        structure.prune(writer.model, Random(), writer.job)
    assert all(torch.equal(before[name], tensor) for name, tensor in writer.model.state_dict().items())


def test_other_decoders_are_refused(writer_of: Any) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    writer = writer_of("llama")
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=352, n_positions=32))
    with pytest.raises(ModelError, match=r"blocks of a GPT2LMHeadModel are not known(.|\n)*Llama, Mistral"):
        Layers(count=1).prune(model, Random(), writer.job)
