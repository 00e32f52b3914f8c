"""Neurons of a transformer's feed-forward layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from edgeforge.core.errors import ModelError
from edgeforge.core.stage import Job
from edgeforge.criteria import Criterion, Part
from edgeforge.structures import Structure
from edgeforge.structures._allocation import Share, allocate, check_ratio
from edgeforge.structures._size import change, size

if TYPE_CHECKING:
    from typing import Self

    from transformers import PreTrainedModel

_CONFIG_FIELDS = ("intermediate_size", "hidden_dim")  # the second is DistilBERT's
_K_QUANT_BLOCK, _SMALLEST_BLOCK = 256, 32  # GGUF quantizes rows in blocks of this many weights


class FfnWidth(Structure):
    """Remove neurons between the feed-forward layers, in every block its own least important ones and equally many.

    Where a gate scales what they put out (Llama and its like), a neuron goes with its row of the gate.

    Hugging Face's config says the new width, so plain `from_pretrained` loads the result.
    """

    kind: Literal["ffn_width"] = "ffn_width"
    ratio: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="Share of each block's neurons to remove, 0 to below 1."
    )
    width: int | None = Field(default=None, ge=1, description="Instead of `ratio`: neurons that stay in each block.")
    round_to: int = Field(
        default=1,
        ge=1,
        description="With `ratio`: keep a multiple of this many neurons (16 suits most processors, 256 all of GGUF).",
    )

    removes: ClassVar[Part] = "neurons"
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.models.surgery",
        "edgeforge.structures._allocation",
        "edgeforge.structures._blocks",
        "edgeforge.structures._ranking",
        "edgeforge.structures._size",
    )

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        if (self.ratio is None) == (self.width is None):
            raise ValueError("give either ratio or width")
        if self.width is not None and self.round_to != 1:
            raise ValueError("round_to goes with ratio; width is kept as it is given")
        return self

    def prune(self, model: PreTrainedModel, criterion: Criterion, job: Job) -> Mapping[str, Any]:
        """Remove neurons in place; return ``width`` ([before, after] in each block) and the size."""
        from edgeforge.structures._blocks import blocks
        from edgeforge.structures._ranking import best, judged

        self.check(criterion)
        interface = job.data.interface
        before, found = size(model, interface), blocks(model)
        width = min(block.neurons for block in found)
        count = self._count(width)
        if count == width:
            job.progress.warn("nothing was pruned: what was asked for is less than one neuron, or one step of round_to")
            return {"width": [width, width], **change(before, model, interface)}
        scores = judged(model, [block.neuron_units() for block in found], criterion, job)
        for block, values in zip(found, scores, strict=True):
            block.keep_neurons(best(values, count))
        for field in _CONFIG_FIELDS:
            if hasattr(model.config, field):
                setattr(model.config, field, count)
        if interface.per_token:
            _warn_of_blocks(count, job)
        return {"width": [width, count], **change(before, model, interface)}

    def _count(self, width: int) -> int:
        """Neurons that stay in each block. Raises ModelError."""
        if self.width is not None and self.width > width:
            raise ModelError(f"width is {self.width}, and there are {width} neurons in a block", remedy="keep fewer")
        if self.width is not None:
            return self.width
        assert self.ratio is not None
        check_ratio("the feed-forward layer of a block", width, 1, ratio=self.ratio)
        share = Share("feed-forward", width, 1, [0.0] * width, self.ratio)
        return allocate([share], max_ratio=self.ratio, round_to=self.round_to)[0]


def _warn_of_blocks(width: int, job: Job) -> None:
    """Say so where a decoder's new width is no multiple of the blocks that GGUF's types come in."""
    if width % _SMALLEST_BLOCK:
        job.progress.warn(
            f"a feed-forward width of {width} is no multiple of {_SMALLEST_BLOCK}: no quantized GGUF type holds such "
            f"rows, they stay in 16 bits; multiples of {_K_QUANT_BLOCK} suit all types"
        )
    elif width % _K_QUANT_BLOCK:
        job.progress.warn(
            f"a feed-forward width of {width} is no multiple of {_K_QUANT_BLOCK}: GGUF's K-quants give way to larger "
            f"or coarser types there; `round_to: {_K_QUANT_BLOCK}` avoids it"
        )
