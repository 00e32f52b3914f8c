"""Channels that batch normalization scales down go first."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.core.stage import Job
from edgeforge.criteria import Criterion
from edgeforge.criteria._groups import GroupImportance, is_batch_norm

if TYPE_CHECKING:
    import torch

    from edgeforge.criteria import Importance


class BnScale(Criterion):
    """Mean absolute BatchNorm weight over the coupled layers.

    Liu et al., 2017, "Network Slimming" (https://arxiv.org/abs/1708.06519), without its sparsity training. For models
    with BatchNorm only.
    """

    kind: Literal["bn_scale"] = "bn_scale"

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.criteria._groups",)

    def check(self, model: torch.nn.Module) -> None:
        if not any(is_batch_norm(layer) for layer in model.modules()):
            raise IncompatiblePlanError(
                f"bn_scale needs BatchNorm layers, and {type(model).__name__} has none",
                remedy="use `magnitude` or `taylor`",
            )

    def importance(self, model: torch.nn.Module, job: Job) -> Importance:
        self.check(model)
        # As in the paper, scales are compared as they are: they act on normalized values in every layer.
        return GroupImportance(_absolute_scale, lambda total, count: total / count)


def _absolute_scale(layer: torch.nn.Module, outputs: bool) -> torch.Tensor | None:
    """|weight| per channel, shape (channels,)."""
    return layer.weight.abs() if is_batch_norm(layer) else None
