"""What the text encoders share: fields that follow from the task, sizes that go together, sizes read off the layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from edgeforge.architectures._fields import label_fields, scale_width
from edgeforge.core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from edgeforge.core.task import Interface

Positions = Annotated[int, Field(ge=1, le=65536)]
Epsilon = Annotated[float, Field(gt=0, le=1e-2)]

POSITIONS_DESCRIPTION = "Longest text it can take (tokens); absent: the task's max_length."

BLOCK_AXES: Mapping[str, tuple[str | None, ...]] = {
    "LayerNorm": ("hidden",),
    "query": ("heads", "hidden"),
    "key": ("heads", "hidden"),
    "value": ("heads", "hidden"),
    "attention.output.dense": ("hidden", "heads"),
    "intermediate.dense": ("neurons", "hidden"),
    "output.dense": ("hidden", "neurons"),
}
"""`Architecture.axes` of the blocks of BERT, RoBERTa and ELECTRA."""

DENSE_HEAD_AXES: Mapping[str, tuple[str | None, ...]] = {
    "classifier.dense": ("pooled", "hidden"),
    "classifier.out_proj": (None, "pooled"),
}
"""The same of the classifier that RoBERTa and ELECTRA share."""


def embedding_axes(width: str) -> dict[str, tuple[str | None, ...]]:
    """`Architecture.axes` of the embeddings, whose width counts `width`."""
    tables = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    return {**dict.fromkeys(tables, (None, width)), "embeddings.LayerNorm": (width,)}


def text_fields(interface: Interface, positions: int | None, *, before: int = 0) -> dict[str, Any]:
    """What a config takes from the task: labels, vocabulary, padding, and as many positions as a text has tokens.

    `before` counts positions that no token has. Raises ModelError where `positions` are too few, or the task has no
    texts.
    """
    text = interface.text
    needed = before + text.max_length
    if positions is not None and positions < needed:
        raise ModelError(
            f"it has positions for {positions - before} tokens and the task's texts have up to {text.max_length}",
            where="max_position_embeddings",
            remedy=f"set the task's max_length to {positions - before} or less, or leave max_position_embeddings out",
        )
    return {
        **label_fields(interface),
        "vocab_size": text.vocabulary_size,
        "pad_token_id": text.pad_id,
        "max_position_embeddings": positions or needed,
    }


def heads_divide(width: int, heads: int, *, names: tuple[str, str] = ("hidden_size", "num_attention_heads")) -> None:
    """Raise ValueError unless every head is as wide as the others."""
    if width % heads:
        raise ValueError(f"{names[0]} {width} is not a multiple of {names[1]} {heads}")


def scaled_heads(width: int, heads: int, multiple: float) -> tuple[int, int]:
    """`width` and `heads` times `multiple`: fewer heads, each as wide as before where the numbers allow it."""
    fewer = scale_width(heads, multiple)
    return scale_width(width, multiple, divisor=fewer), fewer


def measured_sizes(model: PreTrainedModel) -> PretrainedConfig:
    """`Architecture.measured` of BERT, RoBERTa and ELECTRA, whose layers have the same names."""
    config = copy.deepcopy(model.config)
    embeddings, blocks = model.base_model.embeddings, model.base_model.encoder.layer
    attention = blocks[0].attention.self
    config.hidden_size = attention.query.in_features
    config.num_attention_heads = attention.num_attention_heads
    config.intermediate_size = blocks[0].intermediate.dense.out_features
    config.num_hidden_layers = len(blocks)
    config.vocab_size = embeddings.word_embeddings.num_embeddings
    config.max_position_embeddings = embeddings.position_embeddings.num_embeddings
    config.type_vocab_size = embeddings.token_type_embeddings.num_embeddings
    return config
