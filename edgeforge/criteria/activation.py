"""What puts out little goes first; of blocks, those that change little."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgeforge.core.stage import Job
from edgeforge.core.task import model_inputs
from edgeforge.criteria import Criterion, Part, Units
from edgeforge.criteria._samples import drawn

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

BATCH = 32


class Activation(Criterion):
    """How much a unit puts out on training samples, as the mean over their tokens; padding does not count.

    Heads and neurons: the length (L2 norm) of the output, of one neuron its absolute value after the activation
    function (Muralidharan et al., 2024, "Minitron", https://arxiv.org/abs/2407.14679). Blocks: block influence,
    1 - cosine between the block's input and output (Men et al., 2024, "ShortGPT", https://arxiv.org/abs/2403.03853).
    Needs no labels and no gradients.
    """

    kind: Literal["activation"] = "activation"
    samples: int = Field(default=512, ge=1, description="Training samples that are looked at.")

    judges: ClassVar[frozenset[Part]] = frozenset({"heads", "neurons", "blocks"})
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.criteria._samples",)

    def units(self, model: PreTrainedModel, units: Sequence[Units], job: Job) -> list[torch.Tensor]:
        import torch

        for one in units:
            self.check_judges(one.part)
        totals = [torch.zeros(one.count, dtype=torch.float64) for one in units]
        tokens = 0
        for batch in drawn(model, job, purpose="activation", samples=self.samples, size=BATCH):
            with torch.no_grad(), _watched(units) as seen:
                model(**model_inputs(batch))
            real = _real_tokens(seen[0], batch)
            tokens += int(real.sum())
            for total, values in zip(totals, seen, strict=True):
                total += values[real].double().sum(0).cpu()
        return [(total / tokens).float() for total in totals]


def _real_tokens(values: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """bool, shape (N, T): which tokens are no padding. `values`: shape (N, T, units)."""
    mask = batch.get("attention_mask")
    return values.new_ones(values.shape[:2]).bool() if mask is None else mask.bool()


@contextmanager
def _watched(units: Sequence[Units]) -> Iterator[list[torch.Tensor]]:
    """While the model runs: what each of `units` puts out, shape (N, T, count), in the order of `units`."""
    seen: list[torch.Tensor] = [None] * len(units)  # type: ignore[list-item]
    handles = [
        one.place.register_forward_hook(_watcher(one, position, seen), with_kwargs=True)
        for position, one in enumerate(units)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _watcher(one: Units, position: int, seen: list[torch.Tensor]) -> Callable[..., None]:
    from torch.nn import functional

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        if one.part == "blocks":
            made = output[0] if isinstance(output, tuple) else output
            seen[position] = 1 - functional.cosine_similarity(given, made, dim=-1)[..., None]
        else:
            seen[position] = given.unflatten(-1, (one.count, -1)).norm(dim=-1)

    return watch
