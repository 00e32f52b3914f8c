"""Channels with small weights go first."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from edgeforge.core.stage import Job
from edgeforge.criteria import Criterion
from edgeforge.criteria._groups import GroupImportance, relative_mean, squared_weights

if TYPE_CHECKING:
    import torch

    from edgeforge.criteria import Importance


class Magnitude(Criterion):
    """Sum of squared weights over everything that a channel's removal takes away.

    Group magnitude of Fang et al., 2023, "DepGraph" (https://arxiv.org/abs/2301.12900), p = 2: the mean over the
    coupled layers, relative to the group's mean. Needs no data.
    """

    kind: Literal["magnitude"] = "magnitude"

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.criteria._groups",)

    def importance(self, model: torch.nn.Module, job: Job) -> Importance:
        return GroupImportance(squared_weights, relative_mean)
