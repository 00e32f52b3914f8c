"""Scores against the papers' formulas by hand, torch-pruning's own where those are right, and finite differences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch_pruning
from torch import nn
from torch.nn import functional
from torch_pruning.dependency import Group

from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.core.stage import Job
from edgeforge.criteria import Criterion
from edgeforge.criteria._groups import by_channel
from edgeforge.criteria.bn_scale import BnScale
from edgeforge.criteria.fpgm import Fpgm
from edgeforge.criteria.lamp import Lamp
from edgeforge.criteria.magnitude import Magnitude
from edgeforge.criteria.random import Random
from edgeforge.criteria.taylor import MINI_BATCH, Taylor


class Small(nn.Module):
    """Convolution (6), normalization, ReLU; depthwise; then flattened 3x3 maps into a linear layer with a bias."""

    config = SimpleNamespace()

    def __init__(self, depthwise: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.depth = nn.Conv2d(6, 6, 3, padding=1, groups=6) if depthwise else nn.Identity()
        self.next = nn.Conv2d(6, 5, 1)
        self.linear = nn.Linear(5 * 9, 4)

    def forward(self, pixel_values: torch.Tensor) -> Any:
        hidden = self.depth(functional.relu(self.norm(self.conv(pixel_values))))
        return SimpleNamespace(logits=self.linear(self.next(hidden).flatten(1)))


@pytest.fixture
def small() -> Small:
    return make()


def make(depthwise: bool = False) -> Small:
    torch.manual_seed(0)
    model = Small(depthwise)
    nn.init.uniform_(model.norm.weight, 0.5, 1.5)
    nn.init.normal_(model.norm.bias)
    nn.init.normal_(model.norm.running_mean)
    return model.eval()


def group_of(model: nn.Module, name: str) -> Group:
    graph = torch_pruning.DependencyGraph().build_dependency(
        model, {"pixel_values": torch.zeros(2, 2, 3, 3)}, output_transform=lambda out: out.logits, verbose=False
    )
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    prune = torch_pruning.prune_conv_out_channels
    return graph.get_pruning_group(layer, prune, list(range(layer.weight.shape[0])))


class Data:
    """40 images of 3x3 with 2 channels, 4 labels."""

    interface = SimpleNamespace(per_token=False)

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(40, 2, 3, 3, generator=generator)
        self.labels = torch.arange(40) % 4
        self.asked: list[list[int]] = []

    def size(self, split: str) -> int:
        assert split == "train"
        return 40

    def batch(self, split: str, indices: Sequence[int], *, augment_seed: int | None = None) -> dict[str, torch.Tensor]:
        assert split == "train"
        assert augment_seed is None
        self.asked.append(list(indices))
        return {"pixel_values": self.pixels[list(indices)], "labels": self.labels[list(indices)]}


class Silent:
    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        raise AssertionError(message)


def job(seed: int = 0, data: Data | None = None) -> Job:
    opened = data or Data()
    task: Any = SimpleNamespace(
        open=lambda model=None: opened, loss=lambda logits, batch: functional.cross_entropy(logits, batch["labels"])
    )
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"))
    return Job(task, Path(), seed, lambda: accelerator, Silent())


def scores(criterion: Criterion, model: nn.Module, name: str, seed: int = 0) -> torch.Tensor:
    found = criterion.importance(model, job(seed))(group_of(model, name))
    assert found is not None
    assert found.dtype == torch.float32
    return found


def relative(values: torch.Tensor) -> torch.Tensor:
    return values / values.mean()


# -- magnitude and lamp


def squares(model: Small) -> list[float]:
    """Mean over convolution, normalization and next convolution of the squares that each of 6 channels takes away."""
    found = []
    for c in range(6):
        parts = (model.conv.weight[c], model.norm.weight[c], model.next.weight[:, c])
        found.append(sum(sum(x * x for x in part.flatten().tolist()) for part in parts) / 3)
    return found


def test_magnitude_by_hand_and_as_torch_pruning_has_it(small: Small) -> None:
    found = scores(Magnitude(), small, "conv")
    torch.testing.assert_close(found, relative(torch.tensor(squares(small))))
    theirs = torch_pruning.importance.GroupMagnitudeImportance(p=2)(group_of(small, "conv"))
    torch.testing.assert_close(found, theirs)


def test_magnitude_counts_a_channels_every_place_after_flattening(small: Small) -> None:
    weight = small.linear.weight.unflatten(1, (5, 9))
    own = small.next.weight.square().sum((1, 2, 3))
    wanted = (own + weight.square().sum((0, 2))) / 2
    torch.testing.assert_close(scores(Magnitude(), small, "next"), relative(wanted.detach()))


def test_magnitude_counts_depthwise_filters() -> None:
    model = make(depthwise=True)
    assert isinstance(model.depth, nn.Conv2d)
    wanted = torch.tensor(squares(model)) * 3 + model.depth.weight.detach().square().sum((1, 2, 3))
    torch.testing.assert_close(scores(Magnitude(), model, "conv"), relative(wanted))


def test_lamp_by_hand_and_as_torch_pruning_has_it(small: Small) -> None:
    values = squares(small)
    wanted = torch.tensor([value / sum(other for other in values if other >= value) for value in values])
    found = scores(Lamp(), small, "conv")
    torch.testing.assert_close(found, wanted)
    assert found.max().item() == pytest.approx(1.0)
    theirs = torch_pruning.importance.LAMPImportance()(group_of(small, "conv"))
    torch.testing.assert_close(found, theirs)


# -- bn_scale


def test_bn_scale_is_the_absolute_weight_as_it_is(small: Small) -> None:
    small.norm.weight.data[2] *= -1
    torch.testing.assert_close(scores(BnScale(), small, "conv"), small.norm.weight.detach().abs())
    theirs = torch_pruning.importance.BNScaleImportance(normalizer=None)(group_of(small, "conv"))
    torch.testing.assert_close(scores(BnScale(), small, "conv"), theirs)


def test_bn_scale_has_no_say_where_there_is_no_normalization(small: Small) -> None:
    assert BnScale().importance(small, job())(group_of(small, "next")) is None


def test_bn_scale_refuses_a_model_without_any() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.LayerNorm(2), nn.BatchNorm2d(2, affine=False))
    with pytest.raises(IncompatiblePlanError, match="needs BatchNorm layers, and Sequential has none") as caught:
        BnScale().check(model)
    assert "magnitude" in str(caught.value)
    for criterion in (Magnitude(), Taylor(), Lamp(), Fpgm(), Random()):
        criterion.check(model)


# -- fpgm


def test_fpgm_by_hand(small: Small) -> None:
    """Distances between filters, and between the next layer's input columns; normalizations are not asked."""

    def distances(rows: list[list[float]]) -> list[float]:
        return [sum(math.dist(row, other) for other in rows) for row in rows]

    filters = distances([row.flatten().tolist() for row in small.conv.weight])
    columns = distances([small.next.weight[:, c].flatten().tolist() for c in range(6)])
    wanted = torch.tensor([(a + b) / 2 for a, b in zip(filters, columns, strict=True)])
    torch.testing.assert_close(scores(Fpgm(), small, "conv"), relative(wanted))


def test_fpgm_gives_up_a_filter_that_has_a_twin_before_a_far_one(small: Small) -> None:
    nn.init.normal_(small.conv.weight)
    small.conv.weight.data[3:] = small.conv.weight.data[3]
    small.next.weight.data[:, 3:] = small.next.weight.data[:, 3:4]
    order = scores(Fpgm(), small, "conv").argsort().tolist()
    assert set(order[:3]) == {3, 4, 5}


# -- random


def test_random_follows_from_the_seed_and_the_name(small: Small) -> None:
    first = scores(Random(), small, "conv")
    torch.rand(3)  # the global generator plays no part
    assert torch.equal(scores(Random(), small, "conv"), first)
    assert not torch.equal(scores(Random(), small, "conv", seed=1), first)
    assert not torch.equal(scores(Random(), small, "next")[:5], first[:5])


def test_random_is_uniform(small: Small) -> None:
    drawn = torch.stack([scores(Random(), small, "conv", seed=seed) for seed in range(300)])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert drawn.mean(0).sub(0.5).abs().max() < 5 * (1 / 12 / 300) ** 0.5


# -- taylor


def sides(model: Small, channel: int) -> Iterator[list[tuple[torch.Tensor, Any]]]:
    """What a channel of the first convolution takes from each layer: tensors and where in them."""
    yield [(model.conv.weight, channel)]
    yield [(model.norm.weight, channel), (model.norm.bias, channel)]
    yield [(model.next.weight, (slice(None), channel))]


def change(model: Small, parts: list[tuple[torch.Tensor, Any]], pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """d loss / d scale at 1 of these weights together, by central differences in double precision: sum of w * dL/dw."""
    step, losses = 1e-5, []
    for scale in (1 + step, 1 - step):
        kept = [tensor.data[place].clone() for tensor, place in parts]
        for tensor, place in parts:
            tensor.data[place] *= scale
        with torch.no_grad():
            losses.append(float(functional.cross_entropy(model(pixels).logits, labels)))
        for (tensor, place), value in zip(parts, kept, strict=True):
            tensor.data[place] = value
    return (losses[0] - losses[1]) / (2 * step)


def test_taylor_by_finite_differences(small: Small) -> None:
    data = Data()
    found = Taylor(samples=32).importance(small, job(data=data))(group_of(small, "conv"))
    assert [len(asked) for asked in data.asked] == [MINI_BATCH, MINI_BATCH]
    exact = make().double()
    wanted = [
        sum(
            sum(change(exact, parts, data.pixels[asked].double(), data.labels[asked]) ** 2 for asked in data.asked)
            / len(data.asked)
            for parts in sides(exact, channel)
        )
        for channel in range(6)
    ]
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-3, atol=1e-9)


def test_taylor_leaves_the_model_as_it_was(small: Small) -> None:
    small.train()
    before = {name: value.clone() for name, value in small.state_dict().items()}
    Taylor(samples=16).importance(small, job())
    assert small.training
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    assert all(parameter.grad is None for parameter in small.parameters())


def test_taylor_draws_its_samples_from_the_seed_each_once(small: Small) -> None:
    def drawn(seed: int, samples: int) -> list[int]:
        data = Data()
        Taylor(samples=samples).importance(small, job(seed, data))
        return [index for asked in data.asked for index in asked]

    assert drawn(0, 20) == drawn(0, 20)
    assert drawn(0, 20) != drawn(1, 20)
    assert len(set(drawn(0, 20))) == 20
    assert sorted(drawn(0, 1000)) == list(range(40))


# -- layers with convolution groups


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_an_input_channel_belongs_to_the_filters_of_its_group(groups: int) -> None:
    """Silencing an input channel changes the output by exactly what its weights put in."""
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 12, 3, groups=groups, bias=False)
    rows = by_channel(layer, layer.weight, False)
    assert rows.shape == (6, 12 // groups * 9)
    for channel in range(6):
        image = torch.zeros(1, 6, 3, 3)
        image[0, channel] = 1  # each output is then the sum of one filter's weights for that channel
        outputs = layer(image).flatten()
        touched = rows[channel].view(12 // groups, 9).sum(1)
        first = channel // (6 // groups) * (12 // groups)
        torch.testing.assert_close(outputs[first : first + 12 // groups], touched)
        assert torch.count_nonzero(outputs) == 12 // groups
