"""Footprints, by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import AutoModelForImageClassification, PreTrainedModel

from edgeforge.architectures.resnet import Resnet
from edgeforge.core.task import Input, Interface
from edgeforge.models.footprint import footprint, multiply_accumulates


def conv(channels_in: int, channels_out: int, kernel: int, side: int) -> int:
    return channels_in * channels_out * kernel * kernel * side * side


def test_the_fashion_mnist_teacher(tiny_interface: Interface) -> None:
    """28x28, halved by the stem, its pooling and each stage after the first: 14, 7, 7, 4, 2."""
    interface = replace(tiny_interface, inputs=(Input("pixel_values", (1, 28, 28)),), labels=tuple("0123456789"))
    spec = Resnet(embedding_size=48, hidden_sizes=(48, 96, 240), depths=(2, 2, 2), layer_type="basic")
    model = AutoModelForImageClassification.from_config(spec.config(interface))
    macs = (
        conv(1, 48, 7, 14)
        + 4 * conv(48, 48, 3, 7)
        + conv(48, 96, 3, 4)
        + conv(48, 96, 1, 4)
        + 3 * conv(96, 96, 3, 4)
        + conv(96, 240, 3, 2)
        + conv(96, 240, 1, 2)
        + 3 * conv(240, 240, 3, 2)
        + 240 * 10
    )
    params = (
        48 * (49 + 2)
        + 4 * 48 * (48 * 9 + 2)
        + 96 * (48 * 9 + 2 + 48 + 2)
        + 3 * 96 * (96 * 9 + 2)
        + 240 * (96 * 9 + 2 + 96 + 2)
        + 3 * 240 * (240 * 9 + 2)
        + 241 * 10
    )
    channels = 48 * 5 + 96 * 5 + 240 * 5
    batch_norms = 1 + 4 + 5 + 5
    found = footprint(model, interface)
    assert found == {"params": params, "macs": macs, "size_bytes": 4 * params + 8 * channels + 8 * batch_norms}
    assert round(found["macs"] / 1e6, 1) == 16.4


def test_a_transformer_counts_its_attention(
    tiny_model: Callable[[str], PreTrainedModel], tiny_interface: Interface
) -> None:
    """Width 32, 3 blocks, feed-forward 48, 16 patches of 4x4 and the class token."""
    tokens, width, inner = 17, 32, 48
    projections = 4 * tokens * width * width
    attention = 2 * tokens * tokens * width
    feed_forward = 2 * tokens * width * inner
    macs = 16 * 4 * 4 * width + 3 * (projections + attention + feed_forward) + width * 4
    assert footprint(tiny_model("vit"), tiny_interface)["macs"] == macs


def test_depthwise_convolutions_are_cheap(
    tiny_model: Callable[[str], PreTrainedModel], tiny_interface: Interface
) -> None:
    """ConvNeXt: patches of 2 on 16x16, widths 8 and 16, two blocks each, sides 8 and 4."""

    def block(width: int, side: int) -> int:
        return side * side * (49 * width + 2 * 4 * width * width)

    macs = conv(1, 8, 2, 8) + 2 * block(8, 8) + conv(8, 16, 2, 4) + 2 * block(16, 4) + 16 * 4
    assert footprint(tiny_model("convnext"), tiny_interface)["macs"] == macs


def test_shared_weights_count_once(tiny_model: Callable[[str], PreTrainedModel], tiny_interface: Interface) -> None:
    model = tiny_model("convnext")
    before = footprint(model, tiny_interface)
    first, second = model.convnext.encoder.stages[0].layers
    second.pwconv1.weight = first.pwconv1.weight
    after = footprint(model, tiny_interface)
    shared = first.pwconv1.weight.numel()
    assert after["params"] == before["params"] - shared
    assert after["size_bytes"] == before["size_bytes"] - 4 * shared
    assert after["macs"] == before["macs"]


def test_counting_changes_nothing(
    family: str, tiny_model: Callable[[str], PreTrainedModel], tiny_interface: Interface
) -> None:
    model = tiny_model(family).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    on_meta = tiny_model(family).to("meta")
    assert multiply_accumulates(model, tiny_interface) == multiply_accumulates(on_meta, tiny_interface) > 0
    assert footprint(model, tiny_interface) == footprint(on_meta, tiny_interface)
    assert model.training
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
