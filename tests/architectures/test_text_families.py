"""Text encoders: published sizes, round trips between fields and configs, what follows from the task's texts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModel, AutoModelForSequenceClassification, PretrainedConfig

from edgeforge.architectures import Architecture, architecture_of
from edgeforge.architectures.bert import Bert
from edgeforge.architectures.distilbert import Distilbert
from edgeforge.architectures.electra import Electra
from edgeforge.architectures.roberta import Roberta
from edgeforge.architectures.vit import Vit
from edgeforge.core.errors import ModelError
from edgeforge.core.task import Input, Interface, Pixels, Tokens
from edgeforge.models import loading

if TYPE_CHECKING:
    from pathlib import Path

FAMILIES = (Bert, Distilbert, Roberta, Electra)
TINY: dict[type[Architecture], dict[str, Any]] = {
    Bert: {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    Distilbert: {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    Roberta: {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    Electra: {
        "embedding_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    },
}

every_family = pytest.mark.parametrize("family", FAMILIES)


def texts(vocabulary: int = 50, length: int = 16, pad: int = 0) -> Interface:
    inputs = tuple(Input(name, (length,), "int64", variable=True) for name in ("input_ids", "attention_mask"))
    return Interface(inputs, "logits", ("ham", "spam", "news"), tokens=Tokens(vocabulary, length, pad))


def tiny(family: type[Architecture]) -> Any:
    return family.model_validate({"kind": family.model_fields["kind"].default, **TINY[family]})


def parameters(config: PretrainedConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AutoModel.from_config(config).parameters())


def block(width: int, inside: int) -> int:
    """A block by hand: four square layers, two more, biases, two norms."""
    return 4 * (width * width + width) + 2 * width * inside + inside + width + 4 * width


@pytest.mark.parametrize(
    ("spec", "interface", "published"),
    [
        (Bert(), texts(30522, 512), 11_170_560),  # google/bert_uncased_L-4_H-256_A-4
        (
            Bert(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
            texts(30522, 512),
            22_713_216,  # all-MiniLM-L6-v2
        ),
        (
            Bert(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
            texts(30522, 512),
            109_482_240,  # bert-base-uncased
        ),
        (Distilbert(), texts(30522, 512), 66_362_880),  # distilbert-base-uncased
        (Roberta(), texts(50265, 512, pad=1), 124_645_632),  # roberta-base, with the pooler its classifier leaves out
        (
            Electra(),
            texts(30522, 512),
            (30522 + 512 + 2 + 2) * 128 + (128 + 1) * 256 + 12 * block(256, 1024),  # electra-small, by hand
        ),
    ],
)
def test_parameters_are_the_published_ones(spec: Architecture, interface: Interface, published: int) -> None:
    assert parameters(spec.config(interface)) == published


@every_family
def test_a_config_carries_the_interface(family: type[Architecture]) -> None:
    config = tiny(family).config(texts(vocabulary=77, length=20, pad=3))
    assert (config.vocab_size, config.pad_token_id) == (77, 3)
    assert config.max_position_embeddings == (24 if family is Roberta else 20)
    assert [config.id2label[index] for index in range(3)] == ["ham", "spam", "news"]
    assert config.label2id["news"] == 2


@every_family
def test_the_longest_text_fits_and_every_position_is_used(family: type[Architecture]) -> None:
    model = AutoModelForSequenceClassification.from_config(tiny(family).config(texts(length=20, pad=1))).eval()
    seen: list[int] = []
    table = model.base_model.embeddings.position_embeddings
    table.register_forward_hook(lambda _module, inputs, _output: seen.append(int(inputs[0].max())))
    with torch.no_grad():
        logits = model(input_ids=torch.full((2, 20), 7), attention_mask=torch.ones(2, 20, dtype=torch.int64)).logits
    assert logits.shape == (2, 3)
    assert seen == [table.num_embeddings - 1]


@every_family
def test_padding_changes_nothing(family: type[Architecture]) -> None:
    """The padding id of the task, not the library's default, is what the model leaves out."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(tiny(family).config(texts(pad=3))).eval()
    ids, mask = torch.tensor([[9, 8, 7, 3, 3]]), torch.tensor([[1, 1, 1, 0, 0]])
    with torch.no_grad():
        padded = model(input_ids=ids, attention_mask=mask).logits
        alone = model(input_ids=ids[:, :3], attention_mask=mask[:, :3]).logits
    torch.testing.assert_close(padded, alone)


@every_family
def test_fields_survive_the_config(family: type[Architecture]) -> None:
    config = tiny(family).config(texts())
    assert architecture_of(config) is family
    spec = family.of(config)
    assert spec.config(texts()).to_dict() == config.to_dict()


@every_family
def test_measuring_an_unpruned_model_gives_its_config(family: type[Architecture]) -> None:
    model = AutoModelForSequenceClassification.from_config(tiny(family).config(texts()))
    measured = family.measured(model)
    assert measured is not model.config
    assert measured.to_dict() == model.config.to_dict()


@every_family
def test_measuring_reads_the_layers_not_the_config(family: type[Architecture], tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_config(tiny(family).config(texts()))
    sizes = family.of(model.config)
    for name in ("vocab_size", "max_position_embeddings", *TINY[family]):
        setattr(model.config, name, 1)
    assert family.of(family.measured(model)) == sizes
    loading.save(model, tmp_path)
    assert not (tmp_path / "shapes.json").exists()


@pytest.mark.parametrize("multiple", [0.01, 0.1, 0.33, 0.5, 0.77, 1.0])
@every_family
def test_scaled_shapes_can_be_built(multiple: float, family: type[Architecture]) -> None:
    spec = tiny(family).scaled(multiple)
    assert type(spec).model_validate(spec.model_dump()) == spec, "model_copy must not leave the family's limits"
    model = AutoModelForSequenceClassification.from_config(spec.config(texts())).eval()
    ids = torch.ones(1, 16, dtype=torch.int64)
    assert model(input_ids=ids, attention_mask=ids).logits.shape == (1, 3)


def test_half_a_minilm_has_half_its_heads_each_as_wide() -> None:
    minilm = Bert(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    half = minilm.scaled(0.5)
    assert (half.hidden_size, half.num_attention_heads, half.intermediate_size) == (192, 6, 768)
    assert half.num_hidden_layers == 6


def test_electras_widening_layer_stays_where_it_is_and_away_where_it_is_not() -> None:
    narrow = Electra(embedding_size=31, hidden_size=32, num_attention_heads=2).scaled(0.01)
    assert (narrow.embedding_size, narrow.hidden_size) == (1, 1), "at the smallest there is nothing left to widen"
    equal = Electra(embedding_size=33, hidden_size=33, num_attention_heads=3).scaled(0.5)
    assert equal.embedding_size == equal.hidden_size


def test_too_few_positions_are_refused() -> None:
    short = Bert(max_position_embeddings=64)
    assert short.config(texts(length=64)).max_position_embeddings == 64
    with pytest.raises(
        ModelError, match=r"positions for 64 tokens and the task's texts have up to 65(.|\n)*64 or less"
    ):
        short.config(texts(length=65))
    roberta = Roberta(max_position_embeddings=514)
    assert roberta.config(texts(length=512, pad=1)).max_position_embeddings == 514
    with pytest.raises(ModelError, match="positions for 512 tokens"):
        roberta.config(texts(length=513, pad=1))


def test_texts_and_images_do_not_mix() -> None:
    images = Interface((Input("pixel_values", (1, 8, 8)),), "logits", ("a", "b"), pixels=Pixels((0.5,), (0.5,)))
    with pytest.raises(ModelError, match="takes texts, and the task's data are images"):
        Bert().config(images)
    with pytest.raises(ModelError, match="takes images, and the task's data are texts"):
        Vit().config(texts())


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        (Bert, {"hidden_size": 30, "num_attention_heads": 4}, "30 is not a multiple of num_attention_heads 4"),
        (Roberta, {"hidden_size": 30, "num_attention_heads": 4}, "30 is not a multiple of num_attention_heads 4"),
        (Electra, {"hidden_size": 30, "num_attention_heads": 4}, "30 is not a multiple of num_attention_heads 4"),
        (Distilbert, {"dim": 30, "n_heads": 4}, "dim 30 is not a multiple of n_heads 4"),
        (Bert, {"num_hidden_layers": 0}, "greater than or equal to 1"),
        (Bert, {"vocab_size": 100}, "unknown key 'vocab_size'"),
        (Electra, {"layer_norm_eps": 0}, "greater than 0"),
    ],
)
def test_impossible_shapes_are_refused(family: type[Architecture], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        family.model_validate(fields)


@every_family
def test_every_weight_has_said_what_its_axes_count(family: type[Architecture]) -> None:
    """Axes of one name have one size, so that a slice of them all fits together."""
    from edgeforge.students._slices import _axes_of

    config = tiny(family).config(replace(texts(), labels=("a", "b", "c", "d", "e")))
    sizes: dict[str, set[int]] = {}
    for name, tensor in AutoModelForSequenceClassification.from_config(config).named_parameters():
        axes = _axes_of(name, config)
        assert len(axes) == tensor.dim()
        for size, counted in zip(tensor.shape, axes, strict=True):
            sizes.setdefault(str(counted), set()).add(size)
    assert sizes.pop("None").isdisjoint({32, 48})
    assert {name: found for name, found in sizes.items() if len(found) != 1} == {}
    assert sizes["hidden"] == {32}
    assert sizes["1.neurons"] == {48}
