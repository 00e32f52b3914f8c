"""What the model can do without goes first: the loss is measured with each unit left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.core.stage import Job
from edgeforge.criteria import Criterion, Part, Units
from edgeforge.criteria._passes import Passes
from edgeforge.criteria._samples import drawn, enough, labels_in, loss_of

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

BATCH = 32


class DropLoss(Criterion):
    """Rise of the task's loss on training samples when a unit is left out: a head puts out zeros, a block is skipped.

    Exact where `taylor` is a first-order guess (Michel et al., 2019, "Are Sixteen Heads Really Better than One?",
    https://arxiv.org/abs/1905.10650, ablate heads so), at the price of a forward pass over the samples for each unit,
    from its block to the end of the model; so it is not for neurons. Every label counts equally: a sample's, or a
    token's. A negative score means that the model is better without.
    """

    kind: Literal["drop_loss"] = "drop_loss"
    samples: int | None = Field(
        default=None,
        ge=1,
        description="Training samples that the loss is measured on; absent: 256, of a language model 16 windows.",
    )

    judges: ClassVar[frozenset[Part]] = frozenset({"heads", "blocks"})
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.criteria._passes", "edgeforge.criteria._samples")

    def units(self, model: PreTrainedModel, units: Sequence[Units], job: Job) -> list[torch.Tensor]:
        import torch

        for one in units:
            self.check_judges(one.part)
        totals = [torch.zeros(one.count, dtype=torch.float64) for one in units]
        passes = Passes(list({one.block: None for one in units}))
        seen, samples = 0, self.samples or enough(job, 256, 16)
        for batch in drawn(model, job, purpose="drop_loss", samples=samples, size=BATCH):
            count = labels_in(batch)
            with torch.no_grad():
                with passes.remembered():
                    whole = float(loss_of(model, batch, job))
                for total, one in zip(totals, units, strict=True):
                    for unit in range(one.count):
                        with _left_out(one, unit, passes):
                            total[unit] += count * (float(loss_of(model, batch, job)) - whole)
            seen += count
        return [(total / seen).float() for total in totals]


@contextmanager
def _left_out(one: Units, unit: int, passes: Passes) -> Iterator[None]:
    """While the model runs, from this unit's block on: without this unit."""
    if one.part == "blocks":
        with passes.without(one.block):
            yield
        return
    handle = one.place.register_forward_pre_hook(_silencer(one.count, unit))
    try:
        with passes.begun_at(one.block):
            yield
    finally:
        handle.remove()


def _silencer(count: int, unit: int) -> Callable[[nn.Module, tuple[torch.Tensor]], tuple[torch.Tensor]]:
    def silence(module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        heads = args[0].reshape(*args[0].shape[:-1], count, -1).clone()
        heads[..., unit, :] = 0
        return (heads.flatten(-2),)

    return silence
