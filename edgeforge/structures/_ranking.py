"""From scores of units to those that stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgeforge.core.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from edgeforge.core.stage import Job
    from edgeforge.criteria import Criterion, Units


def judged(model: PreTrainedModel, units: Sequence[Units], criterion: Criterion, job: Job) -> list[torch.Tensor]:
    """The criterion's scores of each of `units`. Raises ModelError where one is no number."""
    scores = criterion.units(model, units, job)
    for one, values in zip(units, scores, strict=True):
        if not bool(values.isfinite().all()):
            raise ModelError(
                f"the scores of {one.name} are not finite", remedy="are there NaNs in the model's weights?"
            )
    return scores


def best(scores: torch.Tensor, count: int) -> list[int]:
    """The `count` units with the highest scores, in the order they have in the model; of equal ones the last go."""
    order = scores.argsort(stable=True, descending=True)
    return sorted(order[:count].tolist())
