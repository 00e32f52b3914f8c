"""Families: published sizes, round trips between fields and configs, small images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForImageClassification, PretrainedConfig, PreTrainedModel

from edgeforge.architectures import Architecture, architecture_of
from edgeforge.architectures.convnext import Convnext
from edgeforge.architectures.mobilenet_v2 import MobilenetV2
from edgeforge.architectures.resnet import Resnet
from edgeforge.architectures.vit import Vit
from edgeforge.core.errors import ModelError
from edgeforge.core.task import Input, Interface, Pixels


def on_meta(config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForImageClassification.from_config(config)


def imagenet() -> Interface:
    labels = tuple(f"class {index}" for index in range(1000))
    return Interface((Input("pixel_values", (3, 224, 224)),), "logits", labels, Pixels((0.5,) * 3, (0.25,) * 3))


@pytest.mark.parametrize(
    ("spec", "published"),
    [
        (Resnet(), 11_689_512),  # torchvision's resnet18
        (
            Resnet(layer_type="bottleneck", hidden_sizes=(256, 512, 1024, 2048), depths=(3, 4, 6, 3)),
            25_557_032,  # torchvision's resnet50
        ),
        (MobilenetV2(), 3_504_872),  # torchvision's mobilenet_v2
        (Vit(), 5_717_416),  # DeiT-Tiny
        (Convnext(hidden_sizes=(96, 192, 384, 768), depths=(3, 3, 9, 3)), 28_589_128),  # ConvNeXt-T
    ],
)
def test_parameters_are_the_published_ones(spec: Architecture, published: int) -> None:
    model = on_meta(spec.config(imagenet()))
    assert sum(parameter.numel() for parameter in model.parameters()) == published


def test_a_config_carries_the_interface(family: str, tiny_model: Callable[[str], PreTrainedModel]) -> None:
    config = tiny_model(family).config
    assert config.num_channels == 1
    assert config.num_labels == 4
    assert [config.id2label[index] for index in range(4)] == ["north", "east", "south", "west"]
    assert config.label2id["west"] == 3


def test_fields_survive_the_config(
    family: str, tiny_model: Callable[[str], PreTrainedModel], tiny_interface: Interface
) -> None:
    config = tiny_model(family).config
    cls = architecture_of(config)
    assert cls is not None
    spec = cls.of(config)
    assert spec.kind == family
    assert spec.config(tiny_interface).to_dict() == config.to_dict()


def test_measuring_an_unpruned_model_gives_its_config(
    family: str, tiny_model: Callable[[str], PreTrainedModel]
) -> None:
    model = tiny_model(family)
    cls = architecture_of(model.config)
    assert cls is not None
    measured = cls.measured(model)
    assert measured is not model.config
    assert measured.to_dict() == model.config.to_dict()


def test_scaling_multiplies_widths_and_keeps_depths() -> None:
    resnet = Resnet(embedding_size=48, hidden_sizes=(48, 96, 240), depths=(2, 2, 2)).scaled(0.5)
    assert (resnet.embedding_size, resnet.hidden_sizes, resnet.depths) == (24, (24, 48, 120), (2, 2, 2))
    bottleneck = Resnet(layer_type="bottleneck", hidden_sizes=(20, 36), depths=(1, 1)).scaled(0.5)
    assert all(size % 4 == 0 for size in bottleneck.hidden_sizes)
    assert MobilenetV2(depth_multiplier=0.7).scaled(0.5).depth_multiplier == pytest.approx(0.35)
    assert Convnext().scaled(0.5).hidden_sizes == (20, 40, 80, 160)
    deit_small = Vit(hidden_size=384, num_attention_heads=6, intermediate_size=1536)
    assert deit_small.scaled(0.5) == Vit(), "DeiT-Tiny is DeiT-Small at half the width, with heads as wide"


@pytest.mark.parametrize("multiple", [0.01, 0.1, 0.33, 0.5, 0.77, 1.0])
def test_scaled_shapes_can_be_built(multiple: float, family: str, tiny_model: Any, tiny_interface: Interface) -> None:
    cls = architecture_of(tiny_model(family).config)
    assert cls is not None
    spec = cls.of(tiny_model(family).config).scaled(multiple)
    assert type(spec).model_validate(spec.model_dump()) == spec, "model_copy must not leave the family's limits"
    logits = on_meta(spec.config(tiny_interface)).eval()(torch.empty(1, 1, 16, 16, device="meta")).logits
    assert logits.shape == (1, 4)


@pytest.mark.parametrize(
    ("spec", "smallest"),
    [
        (Resnet(), 1),
        (MobilenetV2(), 1),
        (Vit(patch_size=4), 4),
        (Convnext(hidden_sizes=(8, 8, 8), depths=(1, 1, 1), patch_size=2), 8),
    ],
)
def test_small_images(spec: Architecture, smallest: int, tiny_interface: Interface) -> None:
    """Each family takes images down to the size its strides allow; 8x8 digits and 28x28 are no special case."""
    for size in {smallest, 8, 28}:
        config = spec.config(replace(tiny_interface, inputs=(Input("pixel_values", (1, size, size)),)))
        logits = on_meta(config).eval()(torch.empty(2, 1, size, size, device="meta")).logits
        assert logits.shape == (2, 4)


def test_images_need_not_be_square(tiny_interface: Interface) -> None:
    interface = replace(tiny_interface, inputs=(Input("pixel_values", (1, 8, 24)),))
    for spec in (Resnet(), MobilenetV2(), Vit(patch_size=8), Convnext(hidden_sizes=(8, 8), depths=(1, 1))):
        assert on_meta(spec.config(interface)).eval()(torch.empty(1, 1, 8, 24, device="meta")).logits.shape == (1, 4)


def test_a_patch_that_does_not_divide_the_image_is_refused(tiny_interface: Interface) -> None:
    with pytest.raises(ModelError, match=r"patch_size 5 does not divide images of 16x16(.|\n)*2, 4, 8, 16"):
        Vit(patch_size=5).config(tiny_interface)


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (Resnet, {"hidden_sizes": (8, 16), "depths": (1,)}, "hidden_sizes has 2 stages and depths has 1"),
        (Convnext, {"hidden_sizes": (8,), "depths": (1, 1)}, "hidden_sizes has 1 stages and depths has 2"),
        (Resnet, {"hidden_sizes": (), "depths": ()}, "at least 1 item"),
        (Resnet, {"layer_type": "bottleneck", "hidden_sizes": (2,), "depths": (1,)}, "at least 4 channels"),
        (Resnet, {"embedding_size": 0}, "greater than or equal to 1"),
        (Vit, {"hidden_size": 30, "num_attention_heads": 4}, "30 is not a multiple of num_attention_heads 4"),
        (MobilenetV2, {"depth_multiplier": 0}, "greater than 0"),
        (MobilenetV2, {"output_stride": 4}, "Input should be 8, 16 or 32"),
    ],
)
def test_impossible_shapes_are_refused(cls: type[Architecture], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        cls.model_validate(fields)


def test_a_foreign_config_outside_the_limits_is_a_model_error(tiny_model: Callable[[str], PreTrainedModel]) -> None:
    config = tiny_model("vit").config
    config.hidden_act = "quick_gelu"
    with pytest.raises(ModelError, match="hidden_act is 'quick_gelu'"):
        Vit.of(config)


def test_an_unknown_family_has_no_architecture() -> None:
    from transformers import AlbertConfig

    assert architecture_of(AlbertConfig()) is None
