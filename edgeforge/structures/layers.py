"""Whole blocks of a transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from edgeforge.core.errors import ModelError
from edgeforge.core.stage import Job
from edgeforge.criteria import Criterion, Part
from edgeforge.criteria.drop_loss import DropLoss
from edgeforge.structures import Structure
from edgeforge.structures._size import change, size

if TYPE_CHECKING:
    from typing import Self

    from transformers import PreTrainedModel

_EPSILON = 1e-9  # 10 * (1 - 0.9) is 0.999...


class Layers(Structure):
    """Remove whole blocks, attention and feed-forward part together.

    Blocks go one at a time, and those that are left are judged anew each time: blocks stand in for each other, so that
    what two cost is not the sum of what each costs; fewer `steps` take less time. `drop_loss` is the usual criterion;
    `activation` is the cheap one (block influence). Hugging Face's config says the new depth, so plain
    `from_pretrained` loads the result.
    """

    kind: Literal["layers"] = "layers"
    count: int | None = Field(default=None, ge=1, description="How many blocks to remove.")
    ratio: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="Instead of `count`: share of the blocks to remove, 0 to below 1."
    )
    keep: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None,
        min_length=1,
        description="Instead of either: the blocks that stay, counted from 0; no criterion is asked.",
    )

    steps: int | None = Field(
        default=None,
        ge=1,
        description="With `count` or `ratio`: judge anew this many times, each time removing as many blocks; absent: "
        "for every block.",
    )

    removes: ClassVar[Part] = "blocks"
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.models.surgery",
        "edgeforge.structures._blocks",
        "edgeforge.structures._ranking",
        "edgeforge.structures._size",
    )

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        if [self.count, self.ratio, self.keep].count(None) != 2:
            raise ValueError("give one of count, ratio and keep")
        if self.keep is not None and list(self.keep) != sorted(set(self.keep)):
            raise ValueError("keep must rise, each block once")
        if self.keep is not None and self.steps is not None:
            raise ValueError("steps goes with count or ratio; with keep nothing is judged")
        return self

    def usual_criterion(self) -> Criterion | None:
        return DropLoss()

    def prune(self, model: PreTrainedModel, criterion: Criterion, job: Job) -> Mapping[str, Any]:
        """Remove blocks in place; return ``blocks`` ([before, after]), ``kept`` (old numbers), and the size."""
        from edgeforge.models.surgery import keep_blocks
        from edgeforge.structures._blocks import block_list

        self.check(criterion)
        interface = job.data.interface
        before, found = size(model, interface), block_list(model)
        depth = len(found)
        if self.keep is not None:
            if self.keep[-1] >= depth:
                raise ModelError(f"there is no block {self.keep[-1]}", remedy=f"choose from 0 to {depth - 1}")
            kept = list(self.keep)
            keep_blocks(model, found, kept)
        else:
            kept = self._without_the_least(model, criterion, job, left=self._left(depth))
        if len(kept) == depth:
            job.progress.warn("nothing was pruned: what was asked for is less than one block")
        return {"blocks": [depth, len(kept)], "kept": kept, **change(before, model, interface)}

    def _left(self, depth: int) -> int:
        """How many blocks stay. Raises ModelError."""
        left = depth - self.count if self.count is not None else math.floor(depth * (1 - (self.ratio or 0)) + _EPSILON)
        if left < 1:
            raise ModelError(f"this would leave none of {depth} blocks", remedy=f"remove at most {depth - 1}")
        return left

    def _without_the_least(self, model: PreTrainedModel, criterion: Criterion, job: Job, *, left: int) -> list[int]:
        """Remove the least important blocks, step by step, until `left` are there; their old numbers."""
        import torch

        from edgeforge.models.surgery import keep_blocks
        from edgeforge.structures._blocks import block_list, blocks
        from edgeforge.structures._ranking import best, judged

        kept = list(range(len(block_list(model))))
        depth, steps = len(kept), min(self.steps or len(kept), len(kept) - left)
        for step in range(1, steps + 1):
            scores = torch.cat(judged(model, [block.as_unit() for block in blocks(model)], criterion, job))
            stay = best(scores, depth - (depth - left) * step // steps)
            keep_blocks(model, block_list(model), stay)
            kept = [kept[position] for position in stay]
        return kept
