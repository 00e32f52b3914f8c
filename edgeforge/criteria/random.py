"""Channels in random order: the control that every other criterion must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edgeforge.core.seeds import derive
from edgeforge.core.stage import Job
from edgeforge.criteria import Criterion

if TYPE_CHECKING:
    import torch
    from torch_pruning.dependency import Group

    from edgeforge.criteria import Importance


class Random(Criterion):
    """Uniform random scores, which follow from the run's seed and the layers' names alone."""

    kind: Literal["random"] = "random"

    def importance(self, model: torch.nn.Module, job: Job) -> Importance:
        import torch

        names = {module: name for name, module in model.named_modules()}

        def scores(group: Group) -> torch.Tensor:
            seed = derive(job.seed, "random", names[group[0].dep.target.module])
            return torch.rand(len(group[0].idxs), generator=torch.Generator().manual_seed(seed))

        return scores
