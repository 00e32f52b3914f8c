"""Which operations read which weights, and batch normalization absorbed into the convolution before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from edgeforge.core.task import Input, Interface, Pixels
from edgeforge.models.batch_norm import absorb_batch_norm
from edgeforge.models.operations import trace

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def pixels(interface: Interface, count: int = 2) -> torch.Tensor:
    return torch.randn(count, *interface.image_shape, generator=torch.Generator().manual_seed(0))


def called(model: PreTrainedModel, interface: Interface) -> list[tuple[str, str]]:
    """(kind, module path) of every layer in the order their forward hooks fire."""
    order = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            kind = "conv" if isinstance(module, nn.Conv2d) else "linear"
            module.register_forward_hook(lambda *_, entry=(kind, name): order.append(entry))
    with torch.no_grad():
        model(pixels(interface))
    return order


class Shared(nn.Module):
    """A convolution read twice, one normalization used twice, and one that nothing forbids to fold."""

    main_input_name = "pixel_values"

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(1, 4, 3, padding=1) for _ in range(3))
        self.last = nn.Conv2d(4, 4, 1)
        self.read_twice, self.alone, self.twice = (nn.BatchNorm2d(4) for _ in range(3))
        self.table = nn.Parameter(torch.arange(8.0).reshape(2, 4))
        for norm in (self.read_twice, self.alone, self.twice):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        once = self.first(pixel_values)
        several = self.read_twice(once) + once
        shared = self.twice(self.second(pixel_values)) + self.twice(self.third(pixel_values))
        out = self.alone(self.last(several + shared))
        return out + self.table.sum(0)[:, None, None]


def test_layers_are_found_in_the_order_they_run(
    family: str, tiny_model: Callable[[str], PreTrainedModel], tiny_interface: Interface
) -> None:
    model = tiny_model(family)
    layers = trace(model, tiny_interface).layers
    assert [(layer.kind, layer.weight) for layer in layers] == [
        (kind, f"{name}.weight") for kind, name in called(model, tiny_interface)
    ]
    state = dict(model.named_parameters())
    for layer in layers:
        expected = layer.weight.removesuffix("weight") + "bias"
        assert layer.bias == (expected if expected in state else None)


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2"])
def test_every_normalization_of_a_cnn_follows_its_convolution(
    name: str, tiny_model: Callable[[str], PreTrainedModel], tiny_interface: Interface
) -> None:
    model = tiny_model(name)
    norms = {path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    layers = trace(model, tiny_interface).layers
    assert {layer.batch_norm for layer in layers if layer.batch_norm} == norms
    for layer in layers:
        if layer.batch_norm:
            assert layer.weight.rpartition(".convolution")[0] == layer.batch_norm.rpartition(".normalization")[0]


def test_constants_are_what_else_is_read_in_order(
    tiny_model: Callable[[str], PreTrainedModel], tiny_interface: Interface
) -> None:
    model = tiny_model("vit")
    constants = trace(model, tiny_interface).constants
    names = [name for name, _ in constants]
    assert names[0] in ("expand", "vit.embeddings.cls_token")
    assert names[1] == "vit.embeddings.position_embeddings"
    layers = "vit.encoder.layer" if hasattr(model.vit, "encoder") else "vit.layers"  # transformers 4, 5
    assert names[2:4] == [f"{layers}.0.layernorm_before.{part}" for part in ("weight", "bias")]
    assert names[-2:] == ["vit.layernorm.weight", "vit.layernorm.bias"]
    assert torch.equal(constants[0][1].reshape(-1), model.vit.embeddings.cls_token.reshape(-1))


def test_only_what_is_read_once_is_folded() -> None:
    model = Shared().eval()
    interface = Interface((Input("pixel_values", (1, 4, 4)),), "logits", ("a",), Pixels((0.0,), (1.0,)))
    found = trace(model, interface)  # type: ignore[arg-type]
    assert [layer.batch_norm for layer in found.layers] == [None, "twice", "twice", "alone"]
    assert [name for name, _ in found.constants][:4] == [f"read_twice.{name}" for name in NORM]
    assert torch.equal(found.constants[-1][1].reshape(-1), torch.tensor([4.0, 6, 8, 10]))
    images = torch.randn(3, 1, 4, 4)
    with torch.no_grad():
        before = model(images)
        assert absorb_batch_norm(model, found.layers) == ["alone"]  # type: ignore[arg-type]
        assert torch.allclose(model(images), before, atol=1e-5)
    assert not (model.twice.weight == 1).any()


NORM = ("weight", "bias", "running_mean", "running_var")


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2"])
def test_absorbing_keeps_the_function_and_leaves_a_factor_of_one(
    name: str, tiny_model: Callable[[str], PreTrainedModel], tiny_interface: Interface
) -> None:
    model, images = tiny_model(name), pixels(tiny_interface, 8)
    with torch.no_grad():
        before = model(images).logits
        moved = absorb_batch_norm(model, trace(model, tiny_interface).layers)
        after = model(images).logits
    assert torch.allclose(before, after, rtol=1e-4, atol=1e-4 * before.abs().max())
    norms = {path: module for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert sorted(moved) == sorted(norms)
    for norm in norms.values():
        gamma, variance = norm.weight.detach().numpy(), norm.running_var.numpy()
        for factor in (
            gamma / np.sqrt(variance + np.float32(norm.eps)),  # in float32, as exporters fold
            (gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + norm.eps)).astype(np.float32),
            torch.rsqrt(norm.running_var + norm.eps).numpy(),
        ):
            assert (factor == 1).all()


@pytest.mark.parametrize("eps", [1e-12, 1e-6, 1e-5, 1e-3, 0.1])
def test_the_factor_is_one_for_any_epsilon(eps: float) -> None:
    model = Shared().eval()
    model.alone.eps = eps
    interface = Interface((Input("pixel_values", (1, 4, 4)),), "logits", ("a",), Pixels((0.0,), (1.0,)))
    absorb_batch_norm(model, trace(model, interface).layers)  # type: ignore[arg-type]
    variance = model.alone.running_var.numpy()
    assert (np.float32(1) / np.sqrt(variance + np.float32(eps)) == 1).all()


@pytest.mark.parametrize(
    ("name", "read_by_ids"), [("bert", {"word"}), ("distilbert", {"word"}), ("roberta", {"word", "position"})]
)
def test_lookups_are_the_embedding_tables_that_are_read(name: str, read_by_ids: set[str], mails: Any) -> None:
    from edgeforge.models import loading

    if name == "roberta" and int(transformers.__version__.split(".")[0]) >= 5:
        read_by_ids = read_by_ids | {"token_type"}  # it looks zeros up by position
    model = loading.load(mails.torch(name).path)
    found = trace(model, mails.data.interface)
    tables = {path for path, part in model.named_modules() if isinstance(part, nn.Embedding)}
    assert {lookup.table for lookup in found.lookups} == {f"{path}.weight" for path in tables}
    constants = dict(found.constants)
    for lookup in found.lookups:
        table = model.get_parameter(lookup.table)
        if any(lookup.table.endswith(f"{word}_embeddings.weight") for word in read_by_ids):
            assert lookup.constant is None
            assert constants[lookup.table] is table
            continue
        assert lookup.constant is not None
        rows = constants[lookup.constant].reshape(-1, table.shape[1])
        first = table[:1] if "token_type" in lookup.table else table[: len(rows)]
        assert torch.equal(rows, first.expand_as(rows))
    assert {layer.kind for layer in found.layers} == {"linear"}


def test_images_have_no_lookups(tiny_model: Callable[[str], PreTrainedModel], tiny_interface: Interface) -> None:
    assert trace(tiny_model("vit"), tiny_interface).lookups == ()
