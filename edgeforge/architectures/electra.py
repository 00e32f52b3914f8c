"""ELECTRA (Clark et al., 2020, https://arxiv.org/abs/2003.10555)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from edgeforge.architectures import Architecture
from edgeforge.architectures._encoder import (
    BLOCK_AXES,
    DENSE_HEAD_AXES,
    POSITIONS_DESCRIPTION,
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


class Electra(Architecture):
    """BERT's encoder, with embeddings that may be narrower: a linear layer widens them.

    The defaults are those of ELECTRA-Small's discriminator.
    """

    kind: Literal["electra"] = "electra"
    embedding_size: Width = Field(default=128, description="Width of the embeddings; less than hidden_size saves most.")
    hidden_size: Width = Field(default=256, description="Width of the encoder; a multiple of num_attention_heads.")
    num_hidden_layers: Depth = Field(default=12, description="Number of blocks.")
    num_attention_heads: Width = Field(default=4, description="Attention heads in each block.")
    intermediate_size: Width = Field(default=1024, description="Width inside each block's feed-forward part.")
    hidden_act: Activation = Field(default="gelu", description="The activation function.")
    hidden_dropout_prob: Probability = Field(default=0.1, description="Dropout after each sub-layer.")
    attention_probs_dropout_prob: Probability = Field(default=0.1, description="Dropout on the attention weights.")
    max_position_embeddings: Positions | None = Field(default=None, description=POSITIONS_DESCRIPTION)
    type_vocab_size: Width = Field(default=2, description="Kinds of text segments; only the first is used here.")
    layer_norm_eps: Epsilon = Field(default=1e-12, description="What is added to variances before dividing by them.")

    depths_field: ClassVar[str] = "num_hidden_layers"
    can_end_early: ClassVar[bool] = True
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.architectures._encoder", "edgeforge.architectures._fields")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        heads_divide(self.hidden_size, self.num_attention_heads)
        return self

    def config(self, interface: Interface) -> PretrainedConfig:
        from transformers import ElectraConfig

        fields = self.model_dump(mode="json", exclude={"kind", "max_position_embeddings"})
        return ElectraConfig(**fields, **text_fields(interface, self.max_position_embeddings))

    @classmethod
    def of(cls, config: PretrainedConfig) -> Self:
        return read_fields(cls, config)

    def scaled(self, multiple: float) -> Self:
        hidden_size, heads = scaled_heads(self.hidden_size, self.num_attention_heads, multiple)
        # As wide as each other, they need no layer between them: that must stay so, or stay otherwise.
        equal = self.embedding_size == self.hidden_size
        return self.model_copy(
            update={
                "embedding_size": hidden_size if equal else scale_width(self.embedding_size, multiple),
                "hidden_size": hidden_size,
                "num_attention_heads": heads,
                "intermediate_size": scale_width(self.intermediate_size, multiple),
            }
        )

    @classmethod
    def measured(cls, model: PreTrainedModel) -> PretrainedConfig:
        config = measured_sizes(model)
        config.embedding_size = model.base_model.embeddings.word_embeddings.embedding_dim
        return config

    @classmethod
    def stages(cls, model: PreTrainedModel) -> list[nn.Sequential | nn.ModuleList]:
        return [model.base_model.encoder.layer]

    @classmethod
    def answer(cls, model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model.classifier(states)
        return logits

    @classmethod
    def axes(cls, config: PretrainedConfig) -> Mapping[str, tuple[str | None, ...]]:
        width = "hidden" if config.embedding_size == config.hidden_size else "embedding"
        between = {"embeddings_project": ("hidden", "embedding")}
        return {**BLOCK_AXES, **embedding_axes(width), **between, **DENSE_HEAD_AXES}
