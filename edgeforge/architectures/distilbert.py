"""DistilBERT (Sanh et al., 2019, https://arxiv.org/abs/1910.01108)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from edgeforge.architectures import Architecture
from edgeforge.architectures._encoder import (
    POSITIONS_DESCRIPTION,
    Positions,
    embedding_axes,
    heads_divide,
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


class Distilbert(Architecture):
    """BERT's encoder without segments and pooler. The defaults are those of the published model, half of BERT-base."""

    kind: Literal["distilbert"] = "distilbert"
    dim: Width = Field(default=768, description="Width of the encoder; a multiple of n_heads.")
    n_layers: Depth = Field(default=6, description="Number of blocks.")
    n_heads: Width = Field(default=12, description="Attention heads in each block.")
    hidden_dim: Width = Field(default=3072, description="Width inside each block's feed-forward part.")
    activation: Activation = Field(default="gelu", description="The activation function.")
    dropout: Probability = Field(default=0.1, description="Dropout after each sub-layer.")
    attention_dropout: Probability = Field(default=0.1, description="Dropout on the attention weights.")
    seq_classif_dropout: Probability = Field(default=0.2, description="Dropout before the classifier.")
    max_position_embeddings: Positions | None = Field(default=None, description=POSITIONS_DESCRIPTION)

    depths_field: ClassVar[str] = "n_layers"
    can_end_early: ClassVar[bool] = True
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.architectures._encoder", "edgeforge.architectures._fields")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        heads_divide(self.dim, self.n_heads, names=("dim", "n_heads"))
        return self

    def config(self, interface: Interface) -> PretrainedConfig:
        from transformers import DistilBertConfig

        fields = self.model_dump(mode="json", exclude={"kind", "max_position_embeddings"})
        return DistilBertConfig(**fields, **text_fields(interface, self.max_position_embeddings))

    @classmethod
    def of(cls, config: PretrainedConfig) -> Self:
        return read_fields(cls, config)

    def scaled(self, multiple: float) -> Self:
        dim, heads = scaled_heads(self.dim, self.n_heads, multiple)
        return self.model_copy(
            update={"dim": dim, "n_heads": heads, "hidden_dim": scale_width(self.hidden_dim, multiple)}
        )

    @classmethod
    def measured(cls, model: PreTrainedModel) -> PretrainedConfig:
        config = copy.deepcopy(model.config)
        (blocks,) = cls.stages(model)
        block: Any = blocks[0]
        embeddings = model.base_model.embeddings
        config.dim = block.attention.q_lin.in_features
        config.n_heads = block.attention.n_heads
        config.hidden_dim = block.ffn.lin1.out_features
        config.n_layers = len(blocks)
        config.vocab_size = embeddings.word_embeddings.num_embeddings
        config.max_position_embeddings = embeddings.position_embeddings.num_embeddings
        return config

    @classmethod
    def stages(cls, model: PreTrainedModel) -> list[nn.Sequential | nn.ModuleList]:
        return [model.base_model.transformer.layer]

    @classmethod
    def answer(cls, model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model.classifier(model.dropout(model.pre_classifier(states[:, 0]).relu()))
        return logits

    @classmethod
    def axes(cls, config: PretrainedConfig) -> Mapping[str, tuple[str | None, ...]]:
        return {
            **embedding_axes("hidden"),
            **dict.fromkeys(("q_lin", "k_lin", "v_lin"), ("heads", "hidden")),
            "out_lin": ("hidden", "heads"),
            "sa_layer_norm": ("hidden",),
            "ffn.lin1": ("neurons", "hidden"),
            "ffn.lin2": ("hidden", "neurons"),
            "output_layer_norm": ("hidden",),
            "pre_classifier": ("pooled", "hidden"),
            "classifier": (None, "pooled"),
        }
