"""Random order: the control that every other criterion must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from edgeforge.core.seeds import derive
from edgeforge.core.stage import Job
from edgeforge.criteria import Criterion, Part, Units

if TYPE_CHECKING:
    import torch
    from torch_pruning.dependency import Group
    from transformers import PreTrainedModel

    from edgeforge.criteria import Importance


class Random(Criterion):
    """Uniform random scores, which follow from the run's seed and the layers' names alone."""

    kind: Literal["random"] = "random"

    judges: ClassVar[frozenset[Part]] = frozenset({"channels", "heads", "neurons", "blocks"})

    def importance(self, model: torch.nn.Module, job: Job) -> Importance:
        names = {module: name for name, module in model.named_modules()}

        def scores(group: Group) -> torch.Tensor:
            return _uniform(job.seed, names[group[0].dep.target.module], len(group[0].idxs))

        return scores

    def units(self, model: PreTrainedModel, units: Sequence[Units], job: Job) -> list[torch.Tensor]:
        return [_uniform(job.seed, one.name, one.count) for one in units]


def _uniform(seed: int, name: str, count: int) -> torch.Tensor:
    import torch

    return torch.rand(count, generator=torch.Generator().manual_seed(derive(seed, "random", name)))
