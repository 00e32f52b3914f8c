"""MobileNetV2 (Sandler et al., 2018, https://arxiv.org/abs/1801.04381)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.architectures import Architecture
from edgeforge.architectures._fields import Activation, Probability, Width, image_size, interface_fields, read_fields

if TYPE_CHECKING:
    from typing import Self

    from transformers import PretrainedConfig, PreTrainedModel

    from edgeforge.core.task import Interface

LAST_BLOCK_CHANNELS, LAST_CHANNELS = 320, 1280  # at depth_multiplier 1
BATCH_NORM_MOMENTUM = 0.1


class MobilenetV2(Architecture):
    """Inverted residuals with depthwise convolutions. Depth and strides are fixed; one factor sets every width."""

    kind: Literal["mobilenet_v2"] = "mobilenet_v2"
    depth_multiplier: float = Field(
        default=1.0, gt=0, le=4, description="Factor on every width (the paper calls it the width multiplier)."
    )
    depth_divisible_by: Width = Field(default=8, description="Every width is rounded to a multiple of this.")
    min_depth: Width = Field(default=8, description="Fewest channels of any layer.")
    expand_ratio: float = Field(default=6.0, ge=1, le=16, description="Channels inside a block per channel outside.")
    output_stride: Literal[8, 16, 32] = Field(
        default=32, description="How many times smaller the last feature map is; below 32 convolutions are dilated."
    )
    finegrained_output: bool = Field(
        default=True, description="Whether the last layer keeps its 1280 channels when depth_multiplier is below 1."
    )
    hidden_act: Activation = Field(default="relu6", description="The activation function.")
    tf_padding: bool = Field(
        default=True, description="Whether to pad as TensorFlow does, as published weights expect."
    )
    # The Hugging Face default is 0.8, which reads the paper's keep probability as a drop probability.
    classifier_dropout_prob: Probability = Field(default=0.2, description="Dropout before the classifier.")

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.architectures._fields",)

    def config(self, interface: Interface) -> PretrainedConfig:
        from transformers import MobileNetV2Config

        fields = self.model_dump(mode="json", exclude={"kind"})
        return MobileNetV2Config(**fields, **interface_fields(interface), image_size=image_size(interface))

    @classmethod
    def of(cls, config: PretrainedConfig) -> Self:
        return read_fields(cls, config)

    def scaled(self, multiple: float) -> Self:
        return self.model_copy(update={"depth_multiplier": self.depth_multiplier * multiple})

    @classmethod
    def measured(cls, model: PreTrainedModel) -> PretrainedConfig:
        config = copy.deepcopy(model.config)
        last = model.base_model.conv_1x1.convolution
        config.depth_multiplier = last.in_channels / LAST_BLOCK_CHANNELS
        config.finegrained_output = last.out_channels == LAST_CHANNELS
        return config

    @classmethod
    def prepare(cls, model: PreTrainedModel) -> None:
        """Running statistics over about ten batches.

        The Hugging Face class passes TensorFlow's decay, 0.997, for PyTorch's momentum, which is its complement: in
        evaluation its statistics would be those of the last training batch alone.
        """
        from torch.nn import BatchNorm2d

        for module in model.modules():
            if isinstance(module, BatchNorm2d):
                module.momentum = BATCH_NORM_MOMENTUM
