"""Whole heads of a transformer's attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from edgeforge.core.errors import ModelError
from edgeforge.core.stage import Job
from edgeforge.criteria import Criterion, Part
from edgeforge.structures import Structure
from edgeforge.structures._size import change, size

if TYPE_CHECKING:
    from typing import Self

    import torch
    from transformers import PreTrainedModel

    from edgeforge.structures._blocks import Block

_EPSILON = 1e-9  # 10 * (1 - 0.9) is 0.999...


class AttentionHeads(Structure):
    """Remove whole attention heads, in every block its own least important ones and equally many.

    Where query heads share keys and values (grouped-query attention), a key/value head goes with all of its query
    heads, or as many query heads go from every group: either leaves a shape that configs and GGUF have words for.

    The heads that stay keep their size, so that their width is no longer that of the blocks. The configs of Llama,
    Mistral, Qwen2 and Qwen3 say so (`head_dim`), and that of ViT on transformers 5. For BERT, DistilBERT, RoBERTa and
    ELECTRA ``shapes.json`` beside the weights says it, and to transformers 4 the config's `pruned_heads` (of ViT too),
    so that plain `from_pretrained` loads the folder. Transformers 5 gave up that word: there only EdgeForge loads it,
    as everywhere where other widths were pruned besides. Exported files are plain.
    """

    kind: Literal["attention_heads"] = "attention_heads"
    ratio: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="Share of each block's heads (of its groups, where they share) to remove, below 1."
    )
    keep: int | None = Field(default=None, ge=1, description="Instead of `ratio`: query heads that stay in each block.")
    grouped: Literal["whole", "queries"] = Field(
        default="whole",
        description="Where query heads share keys and values: remove a key/value head `whole`, with its query heads, "
        "or only `queries`, equally many of each group.",
    )

    removes: ClassVar[Part] = "heads"
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.models.surgery",
        "edgeforge.structures._blocks",
        "edgeforge.structures._ranking",
        "edgeforge.structures._size",
    )

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        if (self.ratio is None) == (self.keep is None):
            raise ValueError("give either ratio or keep")
        return self

    def prune(self, model: PreTrainedModel, criterion: Criterion, job: Job) -> Mapping[str, Any]:
        """Remove heads in place.

        Returns ``heads`` ([before, after] in each block) and, where they share keys and values, ``key_value_heads``
        likewise; ``kept`` by block (numbers of groups, or of query heads); and the size.
        """
        from edgeforge.structures._blocks import blocks
        from edgeforge.structures._ranking import best, judged

        self.check(criterion)
        interface = job.data.interface
        before, found = size(model, interface), blocks(model)
        groups = min(block.groups for block in found)
        queries = min(block.heads // block.groups for block in found)
        whole = self.grouped == "whole"
        units, others = (groups, queries) if whole else (queries, groups)
        count = self._count(units, others)
        kept: dict[str, list[int]] = {}
        if count == units:
            job.progress.warn("nothing was pruned: what was asked for is less than one head")
        else:
            asked = [block.group_units() if whole else block.query_units() for block in found]
            for block, values in zip(found, judged(model, asked, criterion, job), strict=True):
                chosen = best(values, count) if whole else _of_each_group(values, block.groups, count)
                (block.keep_groups if whole else block.keep_queries)(chosen)
                kept[block.name] = chosen
            _tell_config(model, found[0])
            _warn_of_odd_numbers(model, found[0], job)
        heads = {"heads": [groups * queries, count * others]}
        if queries > 1:
            heads["key_value_heads"] = [groups, count if whole else groups]
        return {**heads, "kept": kept, **change(before, model, interface)}

    def _count(self, units: int, others: int) -> int:
        """How many of `units` stay (groups, or query heads of a group), each of `others` heads. Raises ModelError."""
        whole = self.grouped == "whole"
        heads = units * others
        if self.keep is not None:
            if self.keep > heads:
                raise ModelError(f"keep is {self.keep}, and there are {heads} heads in a block", remedy="keep fewer")
            if self.keep % others:
                shared = f"{others} query heads share each key" if whole else f"{others} groups keep equally many"
                fitting = ", ".join(str(number) for number in range(others, heads + 1, others))
                raise ModelError(f"keep is {self.keep}, and {shared}", remedy=f"keep one of {fitting}")
            return self.keep // others
        assert self.ratio is not None
        count = math.floor(units * (1 - self.ratio) + _EPSILON)
        if count < 1:
            what = "head" if others == 1 else "key/value head" if whole else "query head in a group"
            other = "`grouped: queries`" if whole else "`grouped: whole`"
            largest = math.floor((1 - 1 / units) * 1000) / 1000
            raise ModelError(
                f"ratio {self.ratio:g} would leave no {what} of {units} in a block",
                remedy=f"use a ratio of at most {largest:g}" + (f", or {other}" if others > 1 else ""),
            )
        return count


def _of_each_group(scores: torch.Tensor, groups: int, count: int) -> list[int]:
    """The `count` best query heads of each group, numbered through the block. scores: shape (heads,)."""
    from edgeforge.structures._ranking import best

    own = scores.view(groups, -1)
    return [group * own.shape[1] + head for group in range(groups) for head in best(own[group], count)]


def _tell_config(model: PreTrainedModel, block: Block) -> None:
    """Write heads and their size into the config of a family that reads them there: decoders, ViT of transformers 5."""
    if hasattr(block.attention, "head_dim"):
        model.config.num_attention_heads = block.heads
        model.config.head_dim = block.head_size
        if hasattr(model.config, "num_key_value_heads"):
            model.config.num_key_value_heads = block.groups


def _warn_of_odd_numbers(model: PreTrainedModel, block: Block, job: Job) -> None:
    width = block.query.in_features
    if hasattr(model.config, "num_key_value_heads") and width % block.heads:
        fitting: Sequence[int] = [heads for heads in range(1, block.heads + 1) if width % heads == 0]
        job.progress.warn(
            f"transformers 5 opens no {model.config.model_type} of width {width} with {block.heads} heads, which do "
            f"not divide it; transformers 4 does. Numbers that do: {', '.join(map(str, fitting))}"
        )
