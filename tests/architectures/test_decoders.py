"""Decoders: published sizes, round trips between fields and configs, what follows from the task's texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from edgeforge.architectures import architecture_of
from edgeforge.architectures._decoder import Decoder, rotary
from edgeforge.architectures.llama import Llama
from edgeforge.architectures.mistral import Mistral
from edgeforge.architectures.qwen2 import Qwen2
from edgeforge.architectures.qwen3 import Qwen3
from edgeforge.core.errors import ModelError
from edgeforge.core.task import Input, Interface, Tokens
from edgeforge.models import loading

FAMILIES = (Llama, Mistral, Qwen2, Qwen3)
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
}

every_family = pytest.mark.parametrize("family", FAMILIES)


def texts(vocabulary: int = 50, length: int = 16) -> Interface:
    inputs = tuple(Input(name, (length,), "int64", variable=True) for name in ("input_ids", "attention_mask"))
    return Interface(inputs, "logits", (), tokens=Tokens(vocabulary, length, 0))


def tiny(family: type[Decoder], **fields: Any) -> Any:
    return family.model_validate({"kind": family.model_fields["kind"].default, **TINY, **fields})


def parameters(config: PretrainedConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())


@pytest.mark.parametrize(
    ("spec", "vocabulary", "published"),
    [
        (Llama(), 49152, 134_515_008),  # SmolLM2-135M
        (Qwen2(), 151936, 494_032_768),  # Qwen2.5-0.5B
        (Qwen3(), 151936, 596_049_920),  # Qwen3-0.6B
        (Mistral(), 32768, 7_248_023_552),  # Mistral-7B-v0.3
    ],
)
def test_the_defaults_are_published_models(spec: Decoder, vocabulary: int, published: int) -> None:
    assert parameters(spec.config(texts(vocabulary))) == published


@every_family
@pytest.mark.parametrize("tied", [True, False])
def test_a_config_gives_its_fields_back(family: type[Decoder], tied: bool) -> None:
    spec = tiny(family, tie_word_embeddings=tied, rope_theta=5000.0, max_position_embeddings=512)
    config = spec.config(texts())
    assert family.of(config) == spec
    assert architecture_of(config) is family
    assert (config.vocab_size, config.pad_token_id, config.eos_token_id) == (50, 0, None)
    assert rotary(config) == (5000.0, None)


@every_family
def test_stretched_positions_are_kept(family: type[Decoder]) -> None:
    said = {"rope_type": "linear", "factor": 2.0}
    config = tiny(family, rope_scaling=said).config(texts())
    again = family.of(config)
    assert again.rope_scaling == said
    assert rotary(again.config(texts())) == (again.rope_theta, said)


def test_a_config_of_older_and_newer_libraries() -> None:
    old = {"model_type": "llama", "rope_theta": 7.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert rotary(AutoConfig.for_model(**old)) == (7.0, {"rope_type": "linear", "factor": 2.0})
    new = PretrainedConfig()
    new.rope_parameters = {"rope_type": "default", "rope_theta": 9.0}
    assert rotary(new) == (9.0, None)


def test_a_window_is_said_only_where_it_is_meant() -> None:
    assert tiny(Mistral).config(texts()).sliding_window is None
    assert tiny(Mistral, sliding_window=8).config(texts()).sliding_window == 8


@every_family
def test_the_tasks_texts_decide_the_positions(family: type[Decoder]) -> None:
    assert tiny(family).config(texts(length=24)).max_position_embeddings == 24
    with pytest.raises(ModelError, match="positions for 8 tokens"):
        tiny(family, max_position_embeddings=8).config(texts())


@every_family
def test_scaled_keeps_heads_whole_and_blocks_full(family: type[Decoder]) -> None:
    spec = tiny(
        family, head_dim=None, hidden_size=256, num_attention_heads=8, num_key_value_heads=4, intermediate_size=320
    )
    half = spec.scaled(0.5)
    assert (half.hidden_size, half.num_attention_heads, half.num_key_value_heads) == (128, 4, 2)
    assert (half.head_dim, half.intermediate_size, half.num_hidden_layers) == (32, 160, 2)
    assert parameters(half.config(texts())) < parameters(spec.config(texts())) / 2
    least = spec.scaled(0.01)
    assert (least.hidden_size, least.num_attention_heads, least.num_key_value_heads) == (32, 1, 1)
    assert spec.scaled(1.0).model_copy(update={"head_dim": None}) == spec
    AutoModelForCausalLM.from_config(least.config(texts()))


def test_groups_stay_whole() -> None:
    """SmolLM2's 9 heads in 3 groups, at half: 4 heads in 2."""
    half = Llama().scaled(0.5)
    assert (half.num_attention_heads, half.num_key_value_heads, half.head_dim) == (4, 2, 64)
    assert half.hidden_size == 288


@every_family
def test_sizes_are_read_off_the_layers(family: type[Decoder], tmp_path: Path) -> None:
    from edgeforge.models.surgery import keep_blocks, keep_channels, keep_rows

    model = AutoModelForCausalLM.from_config(tiny(family, tie_word_embeddings=True).config(texts())).eval()
    family.prepare(model)
    keep_blocks(model, family.stages(model)[0], [1])
    keep_rows(model.get_input_embeddings(), range(40))
    model.lm_head.weight, model.lm_head.out_features = model.get_input_embeddings().weight, 40
    model.vocab_size = model.model.vocab_size = 40
    block = model.model.layers[0]
    for name in ("gate_proj", "up_proj"):
        keep_channels(getattr(block.mlp, name), range(64), outputs=True)
    keep_channels(block.mlp.down_proj, range(64), outputs=False)
    block.mlp.intermediate_size = 64
    for name, kept in (("q_proj", 32), ("k_proj", 16), ("v_proj", 16)):
        keep_channels(getattr(block.self_attn, name), range(kept), outputs=True)
    keep_channels(block.self_attn.o_proj, range(32), outputs=False)
    config = family.measured(model)
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (40, 64, 1)
    assert (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size) == (2, 1, 64)
    loading.save(model, tmp_path)
    assert not (tmp_path / "shapes.json").exists()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids).logits, model(input_ids=ids).logits)


@every_family
def test_every_weight_has_its_axes(family: type[Decoder]) -> None:
    """By hand: an axis that counts the width between blocks is as long as it, and so on."""
    fields = {"attention_bias": True} if "attention_bias" in family.model_fields else {}
    spec = tiny(family, tie_word_embeddings=False, **fields)
    config = spec.config(texts())
    lengths = {"hidden": 64, "heads": 64, "key_value_heads": 32, "neurons": 96}
    axes = family.axes(config)
    for name, parameter in AutoModelForCausalLM.from_config(config).named_parameters():
        module, _, leaf = name.rpartition(".")
        (key,) = [end for end in axes if module.endswith(f".{end}") or module == end]
        counted = axes[key][: 1 if leaf == "bias" else None]
        assert len(counted) == parameter.dim()
        assert all(lengths[word] == size for word, size in zip(counted, parameter.shape, strict=True) if word)


@every_family
def test_the_token_that_pads_is_learnt_too(family: type[Decoder]) -> None:
    """It mostly ends texts as well; the library would leave it as it is."""
    model = AutoModelForCausalLM.from_config(tiny(family, tie_word_embeddings=False).config(texts()))
    ids = torch.tensor([[3, 0, 4]])
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_()
        before = model.eval()(input_ids=ids).logits
        family.prepare(model)
        assert torch.equal(model(input_ids=ids).logits, before)
    model(input_ids=ids).logits.square().sum().backward()
    assert model.model.embed_tokens.weight.grad[0].abs().sum() > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads"),
        ({"head_dim": None, "num_attention_heads": 6}, "say the `head_dim`"),
        ({"head_dim": 15}, "multiple of 2"),
        ({"rope_theta": 0.0}, "greater than 1"),
    ],
)
def test_shapes_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        tiny(Llama, **fields)


def test_a_config_outside_the_limits() -> None:
    with pytest.raises(ModelError, match="a llama config: num_hidden_layers is 1000"):
        Llama.of(AutoConfig.for_model("llama", num_hidden_layers=1000))
