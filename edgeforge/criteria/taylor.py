"""What changes the loss least when it is removed goes first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.core.stage import Job
from edgeforge.criteria import Criterion, Part, Units
from edgeforge.criteria._groups import GroupImportance, by_channel, by_unit, is_norm, is_weighted
from edgeforge.criteria._samples import drawn, enough, loss_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from edgeforge.criteria import Importance

    Scores = dict[tuple[torch.nn.Module, bool], torch.Tensor]

MINI_BATCH = 16


class Taylor(Criterion):
    """First-order change of the loss, squared, when weights and biases go: mean of (sum of w * dL/dw)^2.

    Molchanov et al., 2019, "Importance Estimation for Neural Network Pruning", eq. 9
    (https://arxiv.org/abs/1906.10771): squared for each mini-batch of the training split, then averaged, because over
    many samples of a trained model the gradients themselves cancel. Summed over the layers that lose something. Scores
    are changes of the loss, so `scope: global` compares them between layers as they are. A mini-batch is 16 samples, of
    a language model as few as its logits leave room for.
    """

    kind: Literal["taylor"] = "taylor"
    samples: int | None = Field(
        default=None,
        ge=1,
        description="Training samples that gradients are taken from; absent: 512, of a language model 64 windows.",
    )

    judges: ClassVar[frozenset[Part]] = frozenset({"channels", "heads", "neurons", "blocks"})
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.criteria._groups", "edgeforge.criteria._samples")

    def importance(self, model: PreTrainedModel, job: Job) -> Importance:
        sums: Scores = {}
        batches = 0
        for _ in self._gradients(model, job):
            _add_squared_changes(sums, model)
            batches += 1
        model.zero_grad()
        means = {key: value.cpu() / batches for key, value in sums.items()}
        return GroupImportance(lambda layer, outputs: means.get((layer, outputs)), lambda total, count: total)

    def units(self, model: PreTrainedModel, units: Sequence[Units], job: Job) -> list[torch.Tensor]:
        import torch

        totals = [torch.zeros(one.count) for one in units]
        batches = 0
        for _ in self._gradients(model, job):
            for total, one in zip(totals, units, strict=True):
                total += by_unit(one, _change).square().sum(0).cpu()
            batches += 1
        model.zero_grad()
        return [total / batches for total in totals]

    def _gradients(self, model: PreTrainedModel, job: Job) -> Iterator[None]:
        """Leave the gradients of one mini-batch after another in `model`."""
        samples = self.samples or enough(job, 512, 64)
        for batch in drawn(model, job, purpose="taylor", samples=samples, size=MINI_BATCH):
            model.zero_grad()
            loss_of(model, batch, job).backward()  # type: ignore[no-untyped-call]
            yield


def _add_squared_changes(sums: Scores, model: torch.nn.Module) -> None:
    """Add (sum of w * dL/dw)^2, by the present gradients, for the output and input channels of every layer."""
    for layer in model.modules():
        for outputs in (True, False) if is_weighted(layer) else (True,):
            change = _change(layer, outputs)
            if change is not None:
                key = (layer, outputs)
                sums[key] = sums.get(key, 0) + change.square()


def _change(layer: torch.nn.Module, outputs: bool) -> torch.Tensor | None:
    """Sum of w * dL/dw of each channel, shape (channels,), by the present gradients; None where there are none."""
    if not (is_weighted(layer) or is_norm(layer)) or layer.weight.grad is None:
        return None
    change = by_channel(layer, layer.weight.detach() * layer.weight.grad, outputs).sum(1)
    bias = getattr(layer, "bias", None)
    if outputs and bias is not None and bias.grad is not None:
        change += bias.detach() * bias.grad
    return change
