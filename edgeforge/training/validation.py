"""The one number by which choices are made: the task's headline metric on the validation split."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from edgeforge.core.errors import ConfigurationError
from edgeforge.core.report import FALLING
from edgeforge.core.task import Answers, Batch, Evaluation, Task, TaskData

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def validated(
    answer: Callable[[Batch], torch.Tensor], *, task: Task, data: TaskData, device: torch.device
) -> tuple[str, float]:
    """The metric's name and value. `answer`: model inputs on `device` -> logits, in evaluation mode.

    Raises ConfigurationError where there is no such split, or the answers are not numbers.
    """
    if data.size("validation") == 0:
        raise ConfigurationError(
            "choosing the best needs a validation split", where="task.validation", remedy="set it above 0"
        )
    name, value = next(iter(_evaluation(answer, task=task, data=data, device=device).metrics.items()))
    return name, float(value)


def _evaluation(
    answer: Callable[[Batch], torch.Tensor], *, task: Task, data: TaskData, device: torch.device
) -> Evaluation:
    def logits(batch: Batch) -> torch.Tensor:
        return answer({name: value.to(device) for name, value in batch.items()}).float().cpu()

    with torch.no_grad():
        found = task.evaluate(Answers(logits), data, "validation")
    if "reason" in found.metrics:
        raise ConfigurationError(
            str(found.metrics["reason"]), where="validation", remedy="lower `learning_rate`, or set `clip_norm`"
        )
    return found


def model_validated(model: PreTrainedModel, *, task: Task, data: TaskData, device: torch.device) -> tuple[str, float]:
    """The same of a model, which is in evaluation mode and on the CPU afterwards."""
    model.to(device).eval()
    found = validated(lambda inputs: model(**inputs).logits, task=task, data=data, device=device)
    model.to("cpu")
    return found


def model_answers(model: PreTrainedModel, *, task: Task, data: TaskData, device: torch.device) -> Evaluation:
    """All that the validation split says of a model, which is in evaluation mode and on the CPU afterwards.

    Raises ConfigurationError where the answers are not numbers.
    """
    model.to(device).eval()
    found = _evaluation(lambda inputs: model(**inputs).logits, task=task, data=data, device=device)
    model.to("cpu")
    return found


def score(name: str, value: float) -> float:
    """A metric as a number that rises with what is better."""
    return -value if name in FALLING else value
