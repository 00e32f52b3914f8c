"""Channels whose removal changes the loss least go first."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.core.seeds import derive
from edgeforge.core.stage import Job
from edgeforge.criteria import Criterion
from edgeforge.criteria._groups import GroupImportance, by_channel, is_norm, is_weighted

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from edgeforge.core.task import Batch
    from edgeforge.criteria import Importance

    Scores = dict[tuple[torch.nn.Module, bool], torch.Tensor]

MINI_BATCH = 16


class Taylor(Criterion):
    """First-order change of the loss, squared, when a channel's weights and biases go: mean of (sum of w * dL/dw)^2.

    Molchanov et al., 2019, "Importance Estimation for Neural Network Pruning", eq. 9
    (https://arxiv.org/abs/1906.10771): squared for each mini-batch of the training split, then averaged, because over
    many samples of a trained model the gradients themselves cancel. Summed over the coupled layers. Scores are
    changes of the loss, so `scope: global` compares them between layers as they are.
    """

    kind: Literal["taylor"] = "taylor"
    samples: int = Field(default=512, ge=1, description="Training samples that gradients are taken from.")

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.criteria._groups",)

    def importance(self, model: PreTrainedModel, job: Job) -> Importance:
        sums: Scores = {}
        batches = 0
        for _ in self._gradients(model, job):
            _add_squared_changes(sums, model)
            batches += 1
        model.zero_grad()
        means = {key: value.cpu() / batches for key, value in sums.items()}
        return GroupImportance(lambda layer, outputs: means.get((layer, outputs)), lambda total, count: total)

    def _gradients(self, model: PreTrainedModel, job: Job) -> Iterator[None]:
        """Leave the gradients of one mini-batch after another in `model`, in eval mode: as it will be used."""
        data, device, training = job.task.open(), job.accelerator.device, model.training
        size = data.size("train")
        chosen = random.Random(derive(job.seed, "taylor")).sample(range(size), min(self.samples, size))
        model.to(device).eval()
        for start in range(0, len(chosen), MINI_BATCH):
            batch = data.batch("train", chosen[start : start + MINI_BATCH])
            model.zero_grad()
            _loss(model, {name: value.to(device) for name, value in batch.items()}, job).backward()  # type: ignore[no-untyped-call]
            yield
            job.progress.update(min(start + MINI_BATCH, len(chosen)), len(chosen), "gradients")
        model.to("cpu").train(training)


def _loss(model: PreTrainedModel, batch: Batch, job: Job) -> torch.Tensor:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return job.task.loss(model(**inputs).logits, batch)


def _add_squared_changes(sums: Scores, model: torch.nn.Module) -> None:
    """Add (sum of w * dL/dw)^2, by the present gradients, for the output and input channels of every layer."""
    for layer in model.modules():
        if not (is_weighted(layer) or is_norm(layer)) or layer.weight.grad is None:
            continue
        for outputs in (True, False) if is_weighted(layer) else (True,):
            change = by_channel(layer, layer.weight.detach() * layer.weight.grad, outputs).sum(1)
            if outputs and layer.bias is not None and layer.bias.grad is not None:
                change += layer.bias.detach() * layer.bias.grad
            key = (layer, outputs)
            sums[key] = sums.get(key, 0) + change.square()
