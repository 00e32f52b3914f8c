"""How pruning judges what is unimportant: one file per criterion."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgeforge.core.spec import Spec

if TYPE_CHECKING:
    import torch
    from torch_pruning.dependency import Group

    from edgeforge.core.stage import Job

    Importance = Callable[[Group], "torch.Tensor | None"]


class Criterion(Spec):
    """Base of every criterion."""

    kind: str

    def check(self, model: torch.nn.Module) -> None:
        """Refuse, from its layers alone, a model this cannot judge. Raises IncompatiblePlanError."""

    def importance(self, model: torch.nn.Module, job: Job) -> Importance:
        """Scores for `model` as it is now; asked again before every pruning step.

        The result is a torch-pruning importance: a callable from a group of coupled layers to float32 scores,
        shape (channels of the group's first layer,), higher stays; None for a group it cannot judge.
        """
        raise NotImplementedError
