"""Scores of coupled layers: what each layer says of its channels, added up over the group.

torch-pruning's own importances are not used: in 1.6.1 they leave out depthwise convolutions, its Taylor leaves out
BatchNorm, and its FPGM measures distances between squared weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeGuard

    import torch
    from torch import nn
    from torch_pruning.dependency import Group

    from edgeforge.criteria import Units

    Weighted = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
    BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d

LayerScores = Callable[["nn.Module", bool], "torch.Tensor | None"]
"""(layer, outputs) -> scores of its output or input channels, shape (..., channels), or None where it has no say."""


@dataclass(frozen=True)
class GroupImportance:
    """A torch-pruning importance: scores of a group's channels from those of its layers.

    `scores` is asked for every layer and side (outputs, inputs) in the group; `reduce(total, count)` makes the sum of
    the `count` answers, shape (..., channels of the first layer), into one number per channel.
    """

    scores: LayerScores
    reduce: Callable[[torch.Tensor, int], torch.Tensor]

    def __call__(self, group: Group) -> torch.Tensor | None:
        """float32, shape (channels of the group's first layer,); None where no layer has a say."""
        import torch

        total, count = None, 0
        for layer, outputs, channels, roots in members(group):
            with torch.no_grad():
                scores = self.scores(layer, outputs)
                if scores is None:
                    continue
                if total is None:
                    total = scores.new_zeros(*scores.shape[:-1], len(group[0].idxs))
                # Several channels here may belong to one of the first layer (flattened feature maps).
                total.index_add_(-1, torch.tensor(roots), scores[..., channels])
                count += 1
        return None if total is None else self.reduce(total, count).float()


def members(group: Group) -> Iterator[tuple[nn.Module, bool, list[int], list[int]]]:
    """(layer, whether its outputs are meant, its channels, the first layer's channels they belong to)."""
    import torch_pruning
    from torch import nn

    inputs = (torch_pruning.prune_conv_in_channels, torch_pruning.prune_linear_in_channels)
    for position in range(len(group)):
        item = group[position]
        if isinstance(item.dep.target.module, nn.Module):
            yield item.dep.target.module, item.dep.handler not in inputs, item.idxs, item.root_idxs


def by_channel(layer: nn.Module, values: torch.Tensor, outputs: bool) -> torch.Tensor:
    """Rows of what belongs to each output or input channel of `layer`, shape (channels, values per channel).

    `values` has the shape of the layer's weight. An input channel of a grouped convolution belongs to the filters of
    its own convolution group only.
    """
    if outputs:
        return values.flatten(1) if values.dim() > 1 else values[:, None]
    groups = getattr(layer, "groups", 1)
    return values.reshape(groups, -1, *values.shape[1:]).transpose(1, 2).flatten(0, 1).flatten(1)


def by_unit(units: Units, scores: LayerScores) -> torch.Tensor:
    """Each layer's say on each unit, the sum over the unit's channels, shape (layers with a say, count)."""
    import torch

    with torch.no_grad():
        said = [scores(layer, outputs) for layer, outputs in units.sides]
        return torch.stack([values.reshape(units.count, -1).sum(1) for values in said if values is not None])


def is_weighted(layer: nn.Module) -> TypeGuard[Weighted]:
    """Whether it is a convolution or a linear layer."""
    from torch import nn

    return isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)


def is_batch_norm(layer: nn.Module) -> TypeGuard[BatchNorm]:
    """Whether it is a batch normalization with a weight per channel."""
    from torch import nn

    return isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and layer.affine


def is_norm(layer: nn.Module) -> TypeGuard[BatchNorm | nn.LayerNorm | nn.RMSNorm]:
    """Whether it is a batch, layer or root-mean-square normalization with a weight per channel."""
    from torch import nn

    if isinstance(layer, nn.LayerNorm):
        return layer.elementwise_affine
    # Each family of transformers has a class of its own for it, which torch knows nothing of.
    return is_batch_norm(layer) or type(layer).__name__.endswith("RMSNorm")


def relative_mean(total: torch.Tensor, count: int) -> torch.Tensor:
    """The layers' mean, relative to the group's mean, so that groups of different depth and width can be ranked."""
    mean = total / count
    return mean / mean.mean().clamp_min(1e-30)


def squared_weights(layer: nn.Module, outputs: bool) -> torch.Tensor | None:
    """Sum of squared weights per channel, shape (channels,); None for layers without weights."""
    if not is_weighted(layer) and not is_norm(layer):
        return None
    return by_channel(layer, layer.weight, outputs).square().sum(1)
