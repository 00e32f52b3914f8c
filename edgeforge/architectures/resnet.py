"""ResNet (He et al., 2015, https://arxiv.org/abs/1512.03385)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from edgeforge.architectures import Architecture
from edgeforge.architectures._fields import (
    Activation,
    Depth,
    Width,
    interface_fields,
    read_fields,
    scale_width,
    stages_agree,
)

if TYPE_CHECKING:
    from typing import Self

    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from edgeforge.core.task import Interface

BOTTLENECK_REDUCTION = 4  # fixed in the Hugging Face class


class Resnet(Architecture):
    """Residual convolutions. The stem makes the image four times smaller, every stage after the first halves it."""

    kind: Literal["resnet"] = "resnet"
    embedding_size: Width = Field(default=64, description="Channels after the stem.")
    hidden_sizes: tuple[Width, ...] = Field(
        default=(64, 128, 256, 512), min_length=1, description="Channels of each stage."
    )
    depths: tuple[Depth, ...] = Field(default=(2, 2, 2, 2), min_length=1, description="Blocks in each stage.")
    layer_type: Literal["basic", "bottleneck"] = Field(
        default="basic", description="Two 3x3 convolutions per block, or 1x1, 3x3, 1x1 with a quarter of the channels."
    )
    hidden_act: Activation = Field(default="relu", description="The activation function.")
    downsample_in_first_stage: bool = Field(default=False, description="Whether the first stage halves the image too.")
    downsample_in_bottleneck: bool = Field(
        default=False, description="Whether a bottleneck halves the image in its first convolution (else its second)."
    )

    depths_field: ClassVar[str] = "depths"
    can_end_early: ClassVar[bool] = True
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.architectures._fields",)

    @model_validator(mode="after")
    def _stages_are_sound(self) -> Self:
        stages_agree(self.hidden_sizes, self.depths)
        if self.layer_type == "bottleneck" and min(self.hidden_sizes) < BOTTLENECK_REDUCTION:
            raise ValueError(f"a bottleneck stage needs at least {BOTTLENECK_REDUCTION} channels")
        return self

    def config(self, interface: Interface) -> PretrainedConfig:
        from transformers import ResNetConfig

        fields = self.model_dump(mode="json", exclude={"kind"})
        return ResNetConfig(**fields, **interface_fields(interface))

    @classmethod
    def of(cls, config: PretrainedConfig) -> Self:
        return read_fields(cls, config)

    def scaled(self, multiple: float) -> Self:
        divisor = BOTTLENECK_REDUCTION if self.layer_type == "bottleneck" else 1
        return self.model_copy(
            update={
                "embedding_size": scale_width(self.embedding_size, multiple),
                "hidden_sizes": tuple(scale_width(size, multiple, divisor=divisor) for size in self.hidden_sizes),
            }
        )

    @classmethod
    def measured(cls, model: PreTrainedModel) -> PretrainedConfig:
        config = copy.deepcopy(model.config)
        stages: list[Any] = cls.stages(model)
        config.embedding_size = model.base_model.embedder.embedder.convolution.out_channels
        config.hidden_sizes = [blocks[0].layer[-1].convolution.out_channels for blocks in stages]
        config.depths = [len(blocks) for blocks in stages]
        return config

    @classmethod
    def stages(cls, model: PreTrainedModel) -> list[nn.Sequential | nn.ModuleList]:
        return [stage.layers for stage in model.base_model.encoder.stages]

    @classmethod
    def answer(cls, model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model.classifier(model.base_model.pooler(states))
        return logits
