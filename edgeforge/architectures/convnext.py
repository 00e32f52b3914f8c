"""ConvNeXt (Liu et al., 2022, https://arxiv.org/abs/2201.03545)."""

from __future__ import annotations

import copy
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
    stages_agree,
)

if TYPE_CHECKING:
    from typing import Self

    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from edgeforge.core.task import Interface


class Convnext(Architecture):
    """Depthwise convolutions in a transformer's clothes. Patches shrink the image, every later stage halves it.

    The defaults are those of ConvNeXt-Atto.
    """

    kind: Literal["convnext"] = "convnext"
    hidden_sizes: tuple[Width, ...] = Field(
        default=(40, 80, 160, 320), min_length=1, description="Channels of each stage."
    )
    depths: tuple[Depth, ...] = Field(default=(2, 2, 6, 2), min_length=1, description="Blocks in each stage.")
    patch_size: int = Field(
        default=4, ge=1, le=64, description="Side and stride of the first convolution (pixels); 1 or 2 for tiny images."
    )
    hidden_act: Activation = Field(default="gelu", description="The activation function.")
    layer_scale_init_value: float = Field(
        default=1e-6, ge=0, le=1, description="Where each block's learned scale starts; 0: blocks have none."
    )
    drop_path_rate: Probability = Field(
        default=0.0, description="How often the last block is skipped in training; less for earlier ones."
    )

    depths_field: ClassVar[str] = "depths"
    can_end_early: ClassVar[bool] = True
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.architectures._fields",)

    @model_validator(mode="after")
    def _one_depth_per_stage(self) -> Self:
        stages_agree(self.hidden_sizes, self.depths)
        return self

    def config(self, interface: Interface) -> PretrainedConfig:
        from transformers import ConvNextConfig

        fields = {**self.model_dump(mode="json", exclude={"kind"}), "num_stages": len(self.depths)}
        return ConvNextConfig(**fields, **interface_fields(interface), image_size=image_size(interface))

    @classmethod
    def of(cls, config: PretrainedConfig) -> Self:
        return read_fields(cls, config)

    def scaled(self, multiple: float) -> Self:
        return self.model_copy(
            update={"hidden_sizes": tuple(scale_width(size, multiple) for size in self.hidden_sizes)}
        )

    @classmethod
    def measured(cls, model: PreTrainedModel) -> PretrainedConfig:
        config = copy.deepcopy(model.config)
        stages: list[Any] = cls.stages(model)
        config.hidden_sizes = [blocks[0].dwconv.out_channels for blocks in stages]
        config.depths = [len(blocks) for blocks in stages]
        return config

    @classmethod
    def stages(cls, model: PreTrainedModel) -> list[nn.Sequential | nn.ModuleList]:
        return [stage.layers for stage in model.base_model.encoder.stages]

    @classmethod
    def answer(cls, model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model.classifier(model.base_model.layernorm(states.mean(dim=(-2, -1))))
        return logits
