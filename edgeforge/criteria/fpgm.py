"""Channels that others could stand in for go first."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from edgeforge.core.stage import Job
from edgeforge.criteria import Criterion
from edgeforge.criteria._groups import GroupImportance, by_channel, is_weighted, relative_mean

if TYPE_CHECKING:
    import torch

    from edgeforge.criteria import Importance


class Fpgm(Criterion):
    """Sum of Euclidean distances from a channel's weights to those of all channels of the same layer.

    He et al., 2019, "Filter Pruning via Geometric Median" (https://arxiv.org/abs/1811.00250): filters near the
    geometric median are replaceable. Averaged over the coupled layers, relative to the group's mean. Needs no data.
    """

    kind: Literal["fpgm"] = "fpgm"

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.criteria._groups",)

    def importance(self, model: torch.nn.Module, job: Job) -> Importance:
        return GroupImportance(_distances, relative_mean)


def _distances(layer: torch.nn.Module, outputs: bool) -> torch.Tensor | None:
    """Sum over j of ||x_i - x_j||, shape (channels,)."""
    import torch

    if not is_weighted(layer):
        return None
    # cdist finds distances from inner products, which cancel badly in single precision.
    rows = by_channel(layer, layer.weight, outputs).double()
    return torch.cdist(rows, rows).sum(1)
