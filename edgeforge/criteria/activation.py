"""What puts out little goes first; of blocks, those that change little."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgeforge.core.stage import Job
from edgeforge.core.task import model_inputs
from edgeforge.criteria import Criterion, Part, Units
from edgeforge.criteria._samples import drawn, enough

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

BATCH = 32


class Activation(Criterion):
    """How much a unit puts out on training samples, as the mean over their tokens; padding does not count.

    Heads and neurons: the length (L2 norm) of the output, of one neuron its absolute value after the activation
    function and its gate (Muralidharan et al., 2024, "Minitron", https://arxiv.org/abs/2407.14679). Blocks: block
    influence, 1 - cosine between the block's input and output (Men et al., 2024, "ShortGPT",
    https://arxiv.org/abs/2403.03853). Needs no labels and no gradients.
    """

    kind: Literal["activation"] = "activation"
    samples: int | None = Field(
        default=None,
        ge=1,
        description="Training samples that are looked at; absent: 512, of a language model 64 windows.",
    )

    judges: ClassVar[frozenset[Part]] = frozenset({"heads", "neurons", "blocks"})
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.criteria._samples",)

    def units(self, model: PreTrainedModel, units: Sequence[Units], job: Job) -> list[torch.Tensor]:
        import torch

        for one in units:
            self.check_judges(one.part)
        means = [_Mean(one) for one in units]
        samples = self.samples or enough(job, 512, 64)
        for batch in drawn(model, job, purpose="activation", samples=samples, size=BATCH, labelled=False):
            mask = batch.get("attention_mask")
            with torch.no_grad(), _watched(means, None if mask is None else mask.bool()):
                model.base_model(**model_inputs(batch))  # what makes logits of the last states is not asked
        return [mean.total.div(mean.tokens).float() for mean in means]


class _Mean:
    """The sum, so far, of what some units put out at each of `tokens` tokens."""

    def __init__(self, units: Units) -> None:
        import torch

        self.units = units
        self.total = torch.zeros(units.count, dtype=torch.float64)
        self.tokens = 0

    def watcher(self, real: torch.Tensor | None) -> Callable[..., None]:
        """A forward hook that adds the tokens that are `real` (bool, (N, T); None: all)."""

        def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            values = _amounts(self.units, args[0] if args else kwargs["hidden_states"], output)
            values = values.flatten(0, 1) if real is None else values[real]
            # Summed at once: kept for every block, a long window's neurons would take gigabytes.
            self.total += values.sum(0).cpu().double()
            self.tokens += len(values)

        return watch


def _amounts(units: Units, given: Any, output: Any) -> torch.Tensor:
    """What `units` put out, shape (N, T, count), from what their place was `given` and made."""
    from torch.nn import functional

    if units.part == "blocks":
        made = output[0] if isinstance(output, tuple) else output
        return 1 - functional.cosine_similarity(given, made, dim=-1)[..., None]
    lengths: torch.Tensor = given.unflatten(-1, (units.count, -1)).norm(dim=-1)
    return lengths


@contextmanager
def _watched(means: Sequence[_Mean], real: torch.Tensor | None) -> Iterator[None]:
    """While the model runs: add what all units put out."""
    with ExitStack() as hooks:
        for mean in means:
            handle = mean.units.place.register_forward_hook(mean.watcher(real), with_kwargs=True)
            hooks.callback(handle.remove)
        yield
