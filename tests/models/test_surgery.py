"""Taking channels, rows and blocks out of a model in place."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from edgeforge.models.loading import on_meta
from edgeforge.models.surgery import difference, keep_blocks, keep_channels, keep_rows


@pytest.mark.parametrize("bias", [True, False])
def test_outputs_that_stay_are_those_outputs(bias: bool) -> None:
    layer, inputs = nn.Linear(5, 6, bias=bias), torch.randn(3, 5)
    before = layer(inputs)
    layer.weight.requires_grad_(False)
    keep_channels(layer, [4, 1], outputs=True)
    torch.testing.assert_close(layer(inputs), before[:, [4, 1]])
    assert (layer.in_features, layer.out_features) == (5, 2)
    assert not layer.weight.requires_grad
    assert layer.bias is None or layer.bias.requires_grad


def test_inputs_that_go_are_as_if_they_were_zero() -> None:
    layer, inputs = nn.Linear(5, 6), torch.randn(3, 5)
    silenced = inputs.clone()
    silenced[:, [0, 3, 4]] = 0
    before = layer(silenced)
    keep_channels(layer, [1, 2], outputs=False)
    torch.testing.assert_close(layer(inputs[:, [1, 2]]), before)
    assert (layer.in_features, layer.out_features) == (2, 6)


def test_rows_that_stay_and_the_padding_among_them() -> None:
    embedding = nn.Embedding(6, 3, padding_idx=4)
    before = embedding.weight.detach().clone()
    keep_rows(embedding, [1, 4, 5])
    assert torch.equal(embedding.weight, before[[1, 4, 5]])
    assert (embedding.num_embeddings, embedding.padding_idx) == (3, 1)
    embedding(torch.tensor([1, 2])).sum().backward()
    assert embedding.weight.grad is not None
    assert embedding.weight.grad[1].abs().sum() == 0  # padding does not learn


def test_a_model_with_fewer_blocks_is_its_configs_model() -> None:
    """Versions of transformers count blocks in several places."""
    bert = BertForSequenceClassification(
        BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=4, num_attention_heads=2, intermediate_size=8)
    )
    distilbert = DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=9, dim=8, n_layers=4, n_heads=2, hidden_dim=8)
    )
    for model, blocks in ((bert, bert.bert.encoder.layer), (distilbert, distilbert.distilbert.transformer.layer)):
        wanted = [copy.deepcopy(blocks[index].state_dict()) for index in (1, 3)]
        keep_blocks(model, blocks, [1, 3])
        for block, state in zip(blocks, wanted, strict=True):
            assert all(torch.equal(block.state_dict()[name], value) for name, value in state.items())
        assert difference(model, on_meta(type(model), model.config)) == {}
        assert model.config.num_hidden_layers == 2
