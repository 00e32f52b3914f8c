"""What has small weights goes first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from edgeforge.core.stage import Job
from edgeforge.criteria import Criterion, Part, Units
from edgeforge.criteria._groups import GroupImportance, by_unit, relative_mean, squared_weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from edgeforge.criteria import Importance


class Magnitude(Criterion):
    """Sum of squared weights over everything that a removal takes away.

    Channels: group magnitude of Fang et al., 2023, "DepGraph" (https://arxiv.org/abs/2301.12900), p = 2: the mean over
    the coupled layers, relative to the group's mean. Heads, neurons and blocks: the plain sum. Needs no data.
    """

    kind: Literal["magnitude"] = "magnitude"

    judges: ClassVar[frozenset[Part]] = frozenset({"channels", "heads", "neurons", "blocks"})
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.criteria._groups",)

    def importance(self, model: torch.nn.Module, job: Job) -> Importance:
        return GroupImportance(squared_weights, relative_mean)

    def units(self, model: PreTrainedModel, units: Sequence[Units], job: Job) -> list[torch.Tensor]:
        return [by_unit(one, squared_weights).sum(0).float() for one in units]
