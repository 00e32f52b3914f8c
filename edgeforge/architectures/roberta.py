"""RoBERTa (Liu et al., 2019, https://arxiv.org/abs/1907.11692)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from edgeforge.architectures import Architecture
from edgeforge.architectures._encoder import (
    BLOCK_AXES,
    DENSE_HEAD_AXES,
    Epsilon,
    Positions,
    embedding_axes,
    heads_divide,
    measured_sizes,
    scaled_heads,
    text_fields,
)
from edgeforge.architectures._fields import Activation, Depth, Probability, Width, read_fields, scale_width

if TYPE_CHECKING:
    from typing import Self

    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from edgeforge.core.task import Interface


class Roberta(Architecture):
    """BERT's encoder, trained longer. The defaults are those of RoBERTa-base, the smaller of the two published.

    Positions are counted from one past the padding token's id, so the table has rows that no token uses.
    """

    kind: Literal["roberta"] = "roberta"
    hidden_size: Width = Field(default=768, description="Width of the encoder; a multiple of num_attention_heads.")
    num_hidden_layers: Depth = Field(default=12, description="Number of blocks.")
    num_attention_heads: Width = Field(default=12, description="Attention heads in each block.")
    intermediate_size: Width = Field(default=3072, description="Width inside each block's feed-forward part.")
    hidden_act: Activation = Field(default="gelu", description="The activation function.")
    hidden_dropout_prob: Probability = Field(default=0.1, description="Dropout after each sub-layer.")
    attention_probs_dropout_prob: Probability = Field(default=0.1, description="Dropout on the attention weights.")
    max_position_embeddings: Positions | None = Field(
        default=None, description="Rows of the position table; absent: the task's max_length, and the unused rows."
    )
    type_vocab_size: Width = Field(default=1, description="Kinds of text segments; only the first is used here.")
    layer_norm_eps: Epsilon = Field(default=1e-5, description="What is added to variances before dividing by them.")

    depths_field: ClassVar[str] = "num_hidden_layers"
    can_end_early: ClassVar[bool] = True
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.architectures._encoder", "edgeforge.architectures._fields")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        heads_divide(self.hidden_size, self.num_attention_heads)
        return self

    def config(self, interface: Interface) -> PretrainedConfig:
        from transformers import RobertaConfig

        fields = self.model_dump(mode="json", exclude={"kind", "max_position_embeddings"})
        unused = interface.text.pad_id + 1
        return RobertaConfig(**fields, **text_fields(interface, self.max_position_embeddings, before=unused))

    @classmethod
    def of(cls, config: PretrainedConfig) -> Self:
        return read_fields(cls, config)

    def scaled(self, multiple: float) -> Self:
        hidden_size, heads = scaled_heads(self.hidden_size, self.num_attention_heads, multiple)
        return self.model_copy(
            update={
                "hidden_size": hidden_size,
                "num_attention_heads": heads,
                "intermediate_size": scale_width(self.intermediate_size, multiple),
            }
        )

    @classmethod
    def measured(cls, model: PreTrainedModel) -> PretrainedConfig:
        return measured_sizes(model)

    @classmethod
    def stages(cls, model: PreTrainedModel) -> list[nn.Sequential | nn.ModuleList]:
        return [model.base_model.encoder.layer]

    @classmethod
    def answer(cls, model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model.classifier(states)
        return logits

    @classmethod
    def axes(cls, config: PretrainedConfig) -> Mapping[str, tuple[str | None, ...]]:
        return {**BLOCK_AXES, **embedding_axes("hidden"), **DENSE_HEAD_AXES}
