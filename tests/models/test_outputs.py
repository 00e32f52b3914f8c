"""What a forward pass gives beside logits, against the models' own eager attention."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    PreTrainedModel,
    ResNetConfig,
    RobertaConfig,
    ViTConfig,
)

from edgeforge.models.outputs import ATTENTION_STATES, run

TEXT = {"vocab_size": 40, "max_position_embeddings": 32, "num_labels": 3}
WIDTHS = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}
CONFIGS = {
    "bert": lambda: BertConfig(**TEXT, **WIDTHS),
    "roberta": lambda: RobertaConfig(**TEXT, **WIDTHS),
    "electra": lambda: ElectraConfig(**TEXT, **WIDTHS, embedding_size=16),
    "distilbert": lambda: DistilBertConfig(**TEXT, dim=24, n_layers=2, n_heads=3, hidden_dim=32),
    "vit": lambda: ViTConfig(**WIDTHS, image_size=8, patch_size=4, num_channels=1, num_labels=3),
}
ALL = frozenset({"hidden_states", *ATTENTION_STATES})


def model_of(family: str, implementation: str | None = None) -> PreTrainedModel:
    auto = AutoModelForImageClassification if family == "vit" else AutoModelForSequenceClassification
    torch.manual_seed(0)
    model = auto.from_config(CONFIGS[family](), attn_implementation=implementation)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.xavier_normal_(parameter, gain=2)
    return model.eval()


def inputs_of(family: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if family == "vit":
        return {"pixel_values": torch.randn(2, 1, 8, 8, generator=generator)}
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return {"input_ids": torch.randint(5, 40, (2, 5), generator=generator), "attention_mask": mask}


@pytest.mark.parametrize("family", CONFIGS)
def test_states_give_the_models_own_attention(family: str) -> None:
    """softmax(Q K^T / sqrt(d) + mask) is what eager attention reports, and times V what its output layer is given."""
    inputs = inputs_of(family)
    eager = model_of(family, "eager")
    contexts: list[torch.Tensor] = []
    endings = ("attention.output.dense", "attention.out_lin", "attention.o_proj")
    for name, module in eager.named_modules():
        if name.endswith(endings):
            module.register_forward_pre_hook(lambda _module, args: contexts.append(args[0]))
    wanted = eager(**inputs, output_attentions=True).attentions
    answer = run(model_of(family), inputs, frozenset(ATTENTION_STATES))
    mask = inputs.get("attention_mask", torch.ones(1, 1))
    real = mask.bool()[:, None, None, :]
    assert len(answer["query_states"]) == len(wanted) == len(contexts) == 2
    states = zip(*(answer[name] for name in ATTENTION_STATES), strict=True)
    for (query, key, value), attention, context in zip(states, wanted, contexts, strict=True):
        assert query.shape == (2, 3, 5, 8)
        scores = query @ key.transpose(2, 3) / math.sqrt(8)
        found = scores.masked_fill(~real, -torch.inf).softmax(-1)
        torch.testing.assert_close(found, attention, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close((found @ value).transpose(1, 2).flatten(2), context, atol=1e-5, rtol=1e-5)
    assert "hidden_states" not in answer


@pytest.mark.parametrize("family", CONFIGS)
def test_the_answer_is_the_models_and_no_hook_stays(family: str) -> None:
    inputs, model = inputs_of(family), model_of(family)
    plain = model(**inputs, output_hidden_states=True)
    answer = run(model, inputs, ALL)
    assert torch.equal(answer.logits, plain.logits)
    assert len(answer.hidden_states) == len(plain.hidden_states) == 3
    assert all(torch.equal(a, b) for a, b in zip(answer.hidden_states, plain.hidden_states, strict=True))
    assert set(run(model, inputs, frozenset())) == {"logits"}
    assert not any(layer._forward_hooks for layer in model.modules() if isinstance(layer, torch.nn.Linear))


def test_hooks_go_when_the_model_fails() -> None:
    model = model_of("bert")
    with pytest.raises(IndexError):
        run(model, {"input_ids": torch.full((1, 3), 1000)}, ALL)
    assert not any(layer._forward_hooks for layer in model.modules() if isinstance(layer, torch.nn.Linear))


def test_gradients_flow_through_the_states() -> None:
    model = model_of("distilbert")
    run(model, inputs_of("distilbert"), frozenset({"value_states"}))["value_states"][-1].sum().backward()
    layer = model.distilbert.transformer.layer[-1].attention
    assert layer.v_lin.weight.grad.abs().sum() > 0
    assert layer.q_lin.weight.grad is None


def test_autocast_gives_half_precision_states() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = run(model_of("bert"), inputs_of("bert"), ALL)
    assert answer["value_states"][0].dtype == torch.bfloat16
    full = run(model_of("bert"), inputs_of("bert"), ALL)
    torch.testing.assert_close(answer["value_states"][1].float(), full["value_states"][1], atol=0.1, rtol=0.1)


def test_a_model_without_attention_gives_none() -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_channels=1, num_labels=2)
    model = AutoModelForImageClassification.from_config(config).eval()
    answer = run(model, {"pixel_values": torch.zeros(1, 1, 16, 16)}, ALL)
    assert [answer[name] for name in ATTENTION_STATES] == [(), (), ()]
    assert len(answer.hidden_states) == 2


def test_an_output_that_no_model_has_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="attentions, magic"):
        run(model_of("bert"), inputs_of("bert"), frozenset({"magic", "attentions"}))


def test_the_number_of_heads_is_the_blocks_own() -> None:
    """Not the config's: structures may leave another number."""
    model: Any = model_of("bert")
    block = model.bert.encoder.layer[1].attention.self
    block.num_attention_heads, block.attention_head_size = 2, 12
    answer = run(model, inputs_of("bert"), frozenset({"query_states"}))
    assert [state.shape[1:] for state in answer["query_states"]] == [(3, 5, 8), (2, 5, 12)]
