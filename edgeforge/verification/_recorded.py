"""Is the model that a file was made of the one that its stage left, and measured?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgeforge.core.artifact import Artifact
from edgeforge.core.report import FALLING
from edgeforge.core.stage import Job
from edgeforge.core.task import Answers, Batch
from edgeforge.verification import Check

NAME = "model is as its stage recorded it"

DEVIATIONS = 4
"""Standard deviations of a share of correct answers: training may have validated in bfloat16, or on another device."""

OF_ITSELF = 0.2
"""How far any other metric may be from what was recorded, as a share of that. Of a long split only a part is asked."""

WHOLE = 1024
"""Validation samples that are all asked; of more, the first that many."""


def recorded_check(model: Artifact, job: Job) -> list[Check]:
    """The number of parameters, and the headline metric on the validation split where the stage kept it.

    Empty where the stage recorded neither.
    """
    from edgeforge.models import loading

    facts = model.facts
    if model.format != "torch" or not (facts.get("params") or _validated(facts)):
        return []
    network = loading.load(model.path)
    count = sum(parameter.numel() for parameter in network.parameters())
    if facts.get("params") not in (None, count):
        return [Check(NAME, False, f"it has {count} parameters, and {facts['params']} were counted")]
    history = _validated(facts)
    if not history:
        return [Check(NAME, True)]
    name, found, size = _metric(network, job)
    wanted = min(history) if name in FALLING else max(history)
    if not math.isfinite(found):
        return [Check(NAME, False, f"its {name} on the validation split is no number")]
    apart, limit = abs(found - wanted), OF_ITSELF * abs(wanted)
    if name not in FALLING and 0 <= wanted <= 1:
        limit = DEVIATIONS * math.sqrt(max(wanted * (1 - wanted), 0.25 / max(size, 1)) / size)
    return [Check(NAME, apart <= limit, f"{name} is {found:.4f} on {size} samples, {wanted:.4f} was recorded")]


def _validated(facts: Mapping[str, Any]) -> list[float]:
    """The headline metric after each epoch of a stage that kept its best weights; empty for any other."""
    values = (facts.get("history") or {}).get("validation") or ()
    return [float(value) for value in values if value is not None] if "kept_step" in facts else []


def _metric(network: Any, job: Job) -> tuple[str, float, int]:
    """(name, value, samples) of the task's headline metric."""
    import torch

    data = _First(job.data)

    def logits(batch: Batch) -> torch.Tensor:
        with torch.inference_mode():
            answer: torch.Tensor = network(**batch).logits.float()
        return answer

    found = job.task.evaluate(Answers(logits), data, "validation")
    name, value = next(iter(found.metrics.items()))
    return name, float(value) if isinstance(value, int | float) else math.nan, data.size("validation")


class _First:
    """A task's data with fewer samples."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self.interface = data.interface

    def size(self, split: Any) -> int:
        return min(WHOLE, int(self._data.size(split)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)
