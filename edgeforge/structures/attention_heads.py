"""Whole heads of a transformer's attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from edgeforge.core.errors import ModelError
from edgeforge.core.stage import Job
from edgeforge.criteria import Criterion, Part
from edgeforge.structures import Structure
from edgeforge.structures._size import change, size

if TYPE_CHECKING:
    from typing import Self

    from transformers import PreTrainedModel

_EPSILON = 1e-9  # 10 * (1 - 0.9) is 0.999...


class AttentionHeads(Structure):
    """Remove whole attention heads, in every block its own least important ones and equally many.

    The heads that stay keep their size, so that their width is no longer that of the blocks. Hugging Face's config has
    no words for this in BERT, DistilBERT, RoBERTa and ELECTRA: ``shapes.json`` beside the weights says it, and only
    EdgeForge loads the folder (exported files are plain). ViT on transformers 5 has: there `from_pretrained` does too.
    """

    kind: Literal["attention_heads"] = "attention_heads"
    ratio: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="Share of each block's heads to remove, 0 to below 1."
    )
    keep: int | None = Field(default=None, ge=1, description="Instead of `ratio`: heads that stay in each block.")

    removes: ClassVar[Part] = "heads"
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.models.surgery",
        "edgeforge.structures._encoder",
        "edgeforge.structures._ranking",
        "edgeforge.structures._size",
    )

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        if (self.ratio is None) == (self.keep is None):
            raise ValueError("give either ratio or keep")
        return self

    def prune(self, model: PreTrainedModel, criterion: Criterion, job: Job) -> Mapping[str, Any]:
        """Remove heads in place; return ``heads`` ([before, after] in each block), ``kept`` by block, and the size."""
        from edgeforge.structures._encoder import blocks
        from edgeforge.structures._ranking import best, judged

        self.check(criterion)
        interface = job.data.interface
        before, found = size(model, interface), blocks(model)
        heads = min(block.heads for block in found)
        count = self._count(heads)
        if count == heads:
            job.progress.warn("nothing was pruned: what was asked for is less than one head")
            return {"heads": [heads, heads], "kept": {}, **change(before, model, interface)}
        scores = judged(model, [block.head_units() for block in found], criterion, job)
        kept = {block.name: best(values, count) for block, values in zip(found, scores, strict=True)}
        for block in found:
            block.keep_heads(kept[block.name])
            _tell_config(model, block.attention)
        return {"heads": [heads, count], "kept": kept, **change(before, model, interface)}

    def _count(self, heads: int) -> int:
        """Heads that stay in each block. Raises ModelError."""
        if self.keep is not None and self.keep > heads:
            raise ModelError(f"keep is {self.keep}, and there are {heads} heads in a block", remedy="keep fewer")
        if self.keep is not None:
            return self.keep
        assert self.ratio is not None
        count = math.floor(heads * (1 - self.ratio) + _EPSILON)
        if count < 1:
            raise ModelError(
                f"ratio {self.ratio:g} would leave no head of {heads} in a block",
                remedy=f"use a ratio of at most {math.floor((1 - 1 / heads) * 1000) / 1000:g}",
            )
        return count


def _tell_config(model: PreTrainedModel, attention: Any) -> None:
    """Write heads and their size into the config of a family that reads both from there: ViT of transformers 5."""
    if hasattr(attention, "head_dim"):
        model.config.num_attention_heads = attention.num_attention_heads
        model.config.head_dim = attention.head_dim
