"""Layer-adaptive magnitude."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from edgeforge.core.stage import Job
from edgeforge.criteria import Criterion
from edgeforge.criteria._groups import GroupImportance, squared_weights

if TYPE_CHECKING:
    import torch

    from edgeforge.criteria import Importance


class Lamp(Criterion):
    """A channel's squared weights over those of all channels of its group that are at least as large.

    Lee et al., 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning" (https://arxiv.org/abs/2010.07611),
    on channels instead of single weights. It decides how much each layer gives under `scope: global`; inside one
    layer the order, and so the result of `scope: local`, is that of `magnitude`.
    """

    kind: Literal["lamp"] = "lamp"

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.criteria._groups",)

    def importance(self, model: torch.nn.Module, job: Job) -> Importance:
        return GroupImportance(squared_weights, lamp_scores)


def lamp_scores(total: torch.Tensor, count: int) -> torch.Tensor:
    """score(u) = w(u)^2 / sum of w(v)^2 over v with w(v) >= w(u), shape (channels,)."""
    mean = total / count
    ascending, order = mean.sort(stable=True)
    rest = ascending.flip(0).cumsum(0).flip(0)
    scores = mean.clone()
    scores[order] = ascending / rest.clamp_min(1e-30)
    return scores
