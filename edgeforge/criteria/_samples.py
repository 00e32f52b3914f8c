"""Training samples that a criterion looks at."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgeforge.core.errors import DataError
from edgeforge.core.seeds import derive
from edgeforge.core.task import NO_LABEL, model_inputs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from edgeforge.core.stage import Job
    from edgeforge.core.task import Batch

LOGITS_AT_ONCE = 2**26
"""Most logits that a batch may have, 256 MB of them: a language model has one for every token of its vocabulary."""


def enough(job: Job, samples: int, windows: int) -> int:
    """How many samples a criterion looks at where the user does not say: `windows` of a text with a label per token."""
    return windows if job.data.interface.per_token else samples


def drawn(
    model: PreTrainedModel, job: Job, *, purpose: str, samples: int, size: int, labelled: bool = True
) -> Iterator[Batch]:
    """Batches of at most `size`, `samples` of the training split in all, chosen by the run's seed and `purpose`.

    Until the last one is used `model` lies on the run's device, in eval mode, as it will be used, and keeps no keys
    and values for later. Where batches should be `labelled` those without any label are left out; raises DataError
    where none is left.
    """
    data, device, training = job.data, job.accelerator.device, model.training
    present = data.size("train")
    chosen = random.Random(derive(job.seed, purpose)).sample(range(present), min(samples, present))
    if data.interface.per_token:
        text = data.interface.text
        size = max(1, min(size, LOGITS_AT_ONCE // (text.max_length * text.vocabulary_size)))
    caching, useful = getattr(model.config, "use_cache", None), False
    model.to(device).eval()
    try:
        if caching:
            model.config.use_cache = False
        for start in range(0, len(chosen), size):
            batch = data.batch("train", chosen[start : start + size])
            if not labelled or labels_in(batch):
                useful = True
                yield {name: value.to(device) for name, value in batch.items()}
            job.progress.update(min(start + size, len(chosen)), len(chosen), purpose)
    finally:
        if caching:
            model.config.use_cache = caching
        model.to("cpu").train(training)
    if not useful:
        raise DataError(
            f"none of the {len(chosen)} training samples that {purpose} looked at has a label",
            where="criterion.samples",
            remedy="look at more of them, or use `activation`, which needs no labels",
        )


def labels_in(batch: Batch) -> int:
    """How many labels a batch has: its samples, or their tokens."""
    return int((batch["labels"] != NO_LABEL).sum())


def loss_of(model: PreTrainedModel, batch: Batch, job: Job) -> torch.Tensor:
    """The task's loss of the model's answers to a batch, a scalar."""
    return job.task.loss(model(**model_inputs(batch)).logits, batch)
