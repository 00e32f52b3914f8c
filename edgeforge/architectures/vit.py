"""Vision Transformer (Dosovitskiy et al., 2020, https://arxiv.org/abs/2010.11929)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from edgeforge.architectures import Architecture
from edgeforge.architectures._fields import (
    Activation,
    Depth,
    Probability,
    Width,
    image_size,
    interface_fields,
    read_fields,
    scale_width,
)
from edgeforge.core.errors import ModelError

if TYPE_CHECKING:
    from typing import Self

    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from edgeforge.core.task import Interface


class Vit(Architecture):
    """A transformer encoder over image patches. The defaults are those of DeiT-Tiny (https://arxiv.org/abs/2012.12877)."""

    kind: Literal["vit"] = "vit"
    hidden_size: Width = Field(default=192, description="Width of the encoder; a multiple of num_attention_heads.")
    num_hidden_layers: Depth = Field(default=12, description="Number of blocks.")
    num_attention_heads: Width = Field(default=3, description="Attention heads in each block.")
    intermediate_size: Width = Field(default=768, description="Width inside each block's feed-forward part.")
    patch_size: int = Field(default=16, ge=1, le=1024, description="Side of a patch (pixels); divides the image.")
    hidden_act: Activation = Field(default="gelu", description="The activation function.")
    qkv_bias: bool = Field(default=True, description="Whether queries, keys and values have biases.")
    hidden_dropout_prob: Probability = Field(default=0.0, description="Dropout after each sub-layer.")
    attention_probs_dropout_prob: Probability = Field(default=0.0, description="Dropout on the attention weights.")

    depths_field: ClassVar[str] = "num_hidden_layers"
    can_end_early: ClassVar[bool] = True
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.architectures._fields",)

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self

    def config(self, interface: Interface) -> PretrainedConfig:
        from transformers import ViTConfig

        _, height, width = interface.image_shape
        if height % self.patch_size or width % self.patch_size:
            fitting = [size for size in range(2, min(height, width) + 1) if height % size == 0 and width % size == 0]
            raise ModelError(
                f"patch_size {self.patch_size} does not divide images of {height}x{width}",
                where="vit",
                remedy=f"patch sizes that do: {', '.join(map(str, fitting)) or 'none'}; or set the data's image_size",
            )
        fields = self.model_dump(mode="json", exclude={"kind"})
        return ViTConfig(**fields, **interface_fields(interface), image_size=image_size(interface))

    @classmethod
    def of(cls, config: PretrainedConfig) -> Self:
        return read_fields(cls, config)

    def scaled(self, multiple: float) -> Self:
        """Heads become fewer and keep their width where the numbers allow it, as between DeiT's sizes."""
        heads = scale_width(self.num_attention_heads, multiple)
        return self.model_copy(
            update={
                "num_attention_heads": heads,
                "hidden_size": scale_width(self.hidden_size, multiple, divisor=heads),
                "intermediate_size": scale_width(self.intermediate_size, multiple),
            }
        )

    @classmethod
    def measured(cls, model: PreTrainedModel) -> PretrainedConfig:
        config = copy.deepcopy(model.config)
        (blocks,) = cls.stages(model)
        block: Any = blocks[0]
        # transformers 4 and 5 name these differently.
        feed_forward = block.intermediate.dense if hasattr(block, "intermediate") else block.mlp.fc1
        attention = getattr(block.attention, "attention", block.attention)
        hidden_size = model.base_model.embeddings.patch_embeddings.projection.out_channels
        if config.pooler_output_size == config.hidden_size:
            config.pooler_output_size = hidden_size
        config.hidden_size = hidden_size
        config.intermediate_size = feed_forward.out_features
        config.num_attention_heads = attention.num_attention_heads
        config.num_hidden_layers = len(blocks)
        return config

    @classmethod
    def stages(cls, model: PreTrainedModel) -> list[nn.Sequential | nn.ModuleList]:
        base = model.base_model
        return [base.encoder.layer if hasattr(base, "encoder") else base.layers]

    @classmethod
    def answer(cls, model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model.classifier(model.base_model.layernorm(states[:, 0]))
        return logits

    @classmethod
    def axes(cls, config: PretrainedConfig) -> Mapping[str, tuple[str | None, ...]]:
        return {
            "cls_token": (None, None, "hidden"),
            "position_embeddings": (None, None, "hidden"),
            "patch_embeddings.projection": ("hidden", None, None, None),
            **dict.fromkeys(("layernorm_before", "layernorm_after", "layernorm"), ("hidden",)),
            **dict.fromkeys(("query", "key", "value", "q_proj", "k_proj", "v_proj"), ("heads", "hidden")),
            **dict.fromkeys(("attention.output.dense", "attention.o_proj"), ("hidden", "heads")),
            **dict.fromkeys(("intermediate.dense", "mlp.fc1"), ("neurons", "hidden")),
            **dict.fromkeys(("output.dense", "mlp.fc2"), ("hidden", "neurons")),
            "classifier": (None, "hidden"),
        }
