"""Channels of convolutions, widths of linear layers and of attention heads."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from edgeforge.core.errors import ModelError
from edgeforge.core.stage import Job
from edgeforge.criteria import Criterion
from edgeforge.structures import Structure
from edgeforge.structures._allocation import Share, allocate, check_ratio
from edgeforge.structures._size import change, size

if TYPE_CHECKING:
    from typing import Self

    import torch
    from transformers import PreTrainedModel

    from edgeforge.criteria import Importance
    from edgeforge.structures._graph import ChannelGraph, Coupled

Ratio = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class _Wish:
    """What the spec asks of one group: which share of its `initial` units goes, and among whom they are ranked."""

    initial: int
    ratio: float
    alone: bool


class Channels(Structure):
    """Remove whole channels, through every layer that shares them, so that the model really gets smaller.

    Layers whose outputs are added together keep the same channels. In a transformer the residual width, the MLP width
    and the size of each attention head shrink; the number of heads stays. The classifier's outputs are never touched.
    """

    kind: Literal["channels"] = "channels"
    ratio: Ratio = Field(description="Share of the channels to remove, 0 to below 1.")
    ratios: dict[str, Ratio] = Field(
        default={},
        description="Ratios of their own for some layers, by module name or pattern (`*`); the longest match counts, "
        "and of layers that share channels the smallest ratio. Such layers are ranked alone, whatever `scope` says.",
    )
    scope: Literal["local", "global", "isomorphic"] = Field(
        default="local",
        description="Where channels are ranked: in each layer, over the whole model, or among layers that are wired "
        "alike (Fang et al., 2024).",
    )
    max_ratio: Ratio = Field(default=0.9, description="Most that `global` or `isomorphic` may take from one layer.")
    steps: int = Field(default=1, ge=1, le=100, description="Prune in this many steps, judging anew before each.")
    round_to: int = Field(
        default=1, ge=1, description="Keep a multiple of this many channels (16 suits most processors)."
    )
    ignore: tuple[str, ...] = Field(
        default=(), description="Layers to leave alone, by module name or pattern, and what shares channels with them."
    )

    needs: ClassVar[tuple[str, ...]] = ("torch-pruning",)
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.structures._allocation",
        "edgeforge.structures._attention",
        "edgeforge.structures._graph",
        "edgeforge.structures._size",
    )

    @model_validator(mode="after")
    def _ratio_within_cap(self) -> Self:
        if self.scope != "local" and self.ratio > self.max_ratio:
            raise ValueError(
                f"ratio {self.ratio:g} is above max_ratio {self.max_ratio:g}; raise max_ratio or lower ratio"
            )
        return self

    def prune(self, model: PreTrainedModel, criterion: Criterion, job: Job) -> Mapping[str, Any]:
        """Remove channels in place; return ``layers`` (name -> [before, after]), ``params`` and ``macs`` likewise.

        Raises ModelError where a layer would be left with nothing, a pattern matches no layer, the model does not run
        any more, or it is a language model.
        """
        from edgeforge.structures import _attention
        from edgeforge.structures._graph import ChannelGraph

        self.check(criterion)
        interface = job.data.interface
        if interface.per_token:
            raise ModelError(
                f"channels of a {type(model).__name__} are not known: heads of another size would lose their positions",
                remedy="use the structures ffn_width, attention_heads, layers and vocabulary; for fewer hidden "
                "dimensions the student {kind: width, weights: teacher}",
            )
        before, widths = size(model, interface), _widths(model)
        graph = ChannelGraph(model, interface)
        wishes = self._wishes(graph)
        unjudged: set[str] = set()
        if any(wish.ratio > 0 for wish in wishes.values()):
            for step in range(1, self.steps + 1):
                unjudged = self._step(graph, wishes, criterion.importance(model, job), step)
                _attention.follow_widths(model)
                job.progress.update(step, self.steps, "pruning")
        after = _widths(model)
        changed = {name: [width, after[name]] for name, width in widths.items() if after[name] != width}
        self._warn(wishes, unjudged, changed, job)
        return {"layers": changed, **change(before, model, interface)}

    def _wishes(self, graph: ChannelGraph) -> dict[str, _Wish]:
        """By group name. Raises ModelError for patterns that match nothing and ratios that leave nothing."""
        groups = graph.coupled()
        ignored = _matching("ignore", self.ignore, graph.layers)
        prunable = [name for group in groups for name in group.layers if not ignored.intersection(group.layers)]
        own: dict[str, str] = {}
        # An order of its own: that of the mapping is not part of a step's key.
        for pattern in sorted(self.ratios, key=lambda pattern: (len(pattern), -self.ratios[pattern])):
            own.update(dict.fromkeys(_matching("ratios", [pattern], prunable), pattern))
        wishes = {}
        for group in groups:
            if ignored.intersection(group.layers):
                continue
            patterns = [own[name] for name in group.layers if name in own]
            ratio, field = min(
                ((self.ratios[pattern], f"ratios: '{pattern}'") for pattern in patterns), default=(self.ratio, "ratio")
            )
            wishes[group.name] = _Wish(group.units, ratio, alone=bool(patterns) or self.scope == "local")
            if wishes[group.name].alone:
                check_ratio(group.name, group.units, group.block, ratio=ratio, field=field)
        return wishes

    def _step(self, graph: ChannelGraph, wishes: Mapping[str, _Wish], importance: Importance, step: int) -> set[str]:
        """Remove what is due after `step` of `steps`, each layer's share growing evenly; return what was not judged."""
        judged, unjudged = [], set()
        for group in graph.coupled():
            if group.name not in wishes:
                continue
            scores = importance(group.group)
            if scores is None:
                unjudged.add(group.name)
            else:
                judged.append((group, _per_unit(group, scores)))
        shares = [self._share(group, scores, wishes[group.name], step / self.steps) for group, scores in judged]
        kept = allocate(shares, max_ratio=self.max_ratio, round_to=self.round_to)
        for (group, scores), units in zip(judged, kept, strict=True):
            gone = scores.argsort(stable=True)[: group.units - units].tolist()
            if gone:
                graph.remove(group, [block * group.units + unit for block in range(group.block) for unit in gone])
        return unjudged

    def _share(self, group: Coupled, scores: torch.Tensor, wish: _Wish, progress: float) -> Share:
        pool = None if wish.alone else (group.pattern if self.scope == "isomorphic" else "global")
        return Share(group.name, wish.initial, group.block, scores.tolist(), wish.ratio * progress, pool)

    def _warn(
        self, wishes: Mapping[str, _Wish], unjudged: set[str], changed: Mapping[str, Sequence[int]], job: Job
    ) -> None:
        """Say where less happened than was asked for."""
        wanted = [name for name, wish in wishes.items() if wish.ratio > 0]
        if not changed:
            reason = "every layer is ignored" if not wishes else "the ratio is 0" if not wanted else self._too_little()
            job.progress.warn(f"nothing was pruned: {reason}")
        for names, reason in (
            ([name for name in wanted if name in unjudged], "the criterion has no say on it"),
            ([name for name in wanted if wishes[name].alone and name not in unjudged], self._too_little()),
        ):
            same = [name for name in names if name not in changed]
            if changed and same:
                more = f" and {len(same) - 1} more" if len(same) > 1 else ""
                job.progress.warn(f"{same[0]}{more} kept all channels: {reason}")

    def _too_little(self) -> str:
        if self.round_to > 1:
            return f"no smaller multiple of {self.round_to} channels is nearer to what was asked for"
        return "what was asked for is less than one channel"


def _per_unit(group: Coupled, scores: torch.Tensor) -> torch.Tensor:
    """Mean score of each unit over its heads or groups, shape (units,). Raises ModelError where one is no number."""
    if not bool(scores.isfinite().all()):
        raise ModelError(
            f"the scores of {group.name} are not finite",
            remedy="are there NaNs in the model's weights?",
        )
    return scores.view(group.block, group.units).mean(0)


def _matching(field: str, patterns: Sequence[str], layers: Sequence[str] | Mapping[str, Any]) -> set[str]:
    """Names of the layers that patterns name, or that lie in modules they name. Each pattern must match some."""
    found = set()
    for pattern in patterns:
        matched = [name for name in layers if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]
        if not matched:
            near = difflib.get_close_matches(pattern, list(layers), n=1, cutoff=0.3)
            raise ModelError(
                f"{field}: '{pattern}' matches no layer that could be pruned"
                + (f"; perhaps '{near[0]}'?" if near else ""),
                remedy="name modules of the model, or patterns with `*`",
            )
        found.update(matched)
    return found


def _widths(model: torch.nn.Module) -> dict[str, int]:
    """Layer name -> output channels, of every convolution and linear layer."""
    from torch import nn

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    return {name: layer.weight.shape[0] for name, layer in model.named_modules() if isinstance(layer, kinds)}
