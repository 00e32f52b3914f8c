"""Training samples that a criterion looks at."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgeforge.core.seeds import derive
from edgeforge.core.task import model_inputs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from edgeforge.core.stage import Job
    from edgeforge.core.task import Batch


def drawn(model: PreTrainedModel, job: Job, *, purpose: str, samples: int, size: int) -> Iterator[Batch]:
    """Batches of `size`, `samples` of the training split in all, chosen by the run's seed and `purpose`.

    Until the last one is used `model` lies on the run's device, in eval mode: as it will be used.
    """
    data, device, training = job.data, job.accelerator.device, model.training
    present = data.size("train")
    chosen = random.Random(derive(job.seed, purpose)).sample(range(present), min(samples, present))
    model.to(device).eval()
    try:
        for start in range(0, len(chosen), size):
            batch = data.batch("train", chosen[start : start + size])
            yield {name: value.to(device) for name, value in batch.items()}
            job.progress.update(min(start + size, len(chosen)), len(chosen), purpose)
    finally:
        model.to("cpu").train(training)


def loss_of(model: PreTrainedModel, batch: Batch, job: Job) -> torch.Tensor:
    """The task's loss of the model's answers to a batch, a scalar."""
    return job.task.loss(model(**model_inputs(batch)).logits, batch)
