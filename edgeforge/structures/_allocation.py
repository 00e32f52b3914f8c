"""How many channels each layer keeps: arithmetic on widths and scores.

Layers that must keep the same channels count as one (`Share`). Its smallest removable part, a unit, is one channel,
or one channel of every head or convolution group.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from edgeforge.core.errors import ModelError

_EPSILON = 1e-9  # 10 * (1 - 0.9) is 0.999...


@dataclass(frozen=True)
class Share:
    """One layer's part in an allocation.

    `initial` units before any pruning, of `block` channels each; `scores`: one per unit that is left, higher stays;
    `ratio` is the share of `initial` to remove; where `pool` is given, the share of the whole pool.
    """

    name: str
    initial: int
    block: int
    scores: Sequence[float]
    ratio: float
    pool: Hashable | None = None

    @property
    def present(self) -> int:
        return len(self.scores)


def allocate(shares: Sequence[Share], *, max_ratio: float, round_to: int) -> list[int]:
    """Units that each share keeps, at most those it has, at least one.

    Pools are ranked together, lowest scores first, none of their layers losing more than `max_ratio`. Afterwards each
    layer's channels are rounded to the nearest multiple of `round_to`, where the layer is wide enough to have one.
    A share without a pool has passed `check_ratio`. Raises ModelError where a pool's ratio cannot be reached.
    """
    kept = [0] * len(shares)
    pools: dict[Hashable, list[int]] = {}
    for index, share in enumerate(shares):
        if share.pool is None:
            kept[index] = min(_floor_of(share.initial, share.ratio), share.present)
        else:
            pools.setdefault(share.pool, []).append(index)
    for members in pools.values():
        pooled = _ranked_together([shares[index] for index in members], max_ratio)
        for index, units in zip(members, pooled, strict=True):
            kept[index] = units
    least = [1 if share.pool is None else _floor_of(share.initial, max_ratio) for share in shares]
    return [
        _rounded(units, share, round_to, max(1, floor)) for units, share, floor in zip(kept, shares, least, strict=True)
    ]


def check_ratio(name: str, initial: int, block: int, *, ratio: float, field: str = "ratio") -> None:
    """Raise ModelError where `ratio`, which `field` asks for, would leave a layer of `initial` units with none."""
    if _floor_of(initial, ratio) >= 1:
        return
    width = f"{initial} channels" if block == 1 else f"{initial} channels in each of its {block} groups or heads"
    largest = math.floor((1 - 1 / initial) * 1000) / 1000
    raise ModelError(
        f"{field} {ratio:g} would leave {name} with nothing: it has {width}",
        remedy=f"use a ratio of at most {largest:g}, or put the layer in `ignore`",
    )


def _floor_of(initial: int, ratio: float) -> int:
    return math.floor(initial * (1 - ratio) + _EPSILON)


def _ranked_together(pool: Sequence[Share], max_ratio: float) -> list[int]:
    least = [max(1, _floor_of(share.initial, max_ratio)) for share in pool]
    total = sum(share.initial * share.block for share in pool)
    budget = sum(share.present * share.block for share in pool) - _floor_of(total, pool[0].ratio)
    spare = sum(max(0, share.present - floor) * share.block for share, floor in zip(pool, least, strict=True))
    if spare < budget:
        narrow = min(pool, key=lambda share: share.initial)
        gone = total - sum(share.present * share.block for share in pool)
        largest = math.floor((gone + spare) / total * 1000) / 1000
        raise ModelError(
            f"ratio {pool[0].ratio:g} would leave a layer with nothing, {narrow.name} first (max_ratio {max_ratio:g})",
            remedy=f"use a ratio of at most {largest:g}",
        )
    kept = [share.present for share in pool]
    ranked = sorted((score, index, unit) for index, share in enumerate(pool) for unit, score in enumerate(share.scores))
    for _, index, _ in ranked:
        if kept[index] > least[index] and pool[index].block <= budget:
            kept[index] -= 1
            budget -= pool[index].block
    return kept


def _rounded(units: int, share: Share, round_to: int, least: int) -> int:
    step = round_to // math.gcd(round_to, share.block)
    lower = units - units % step
    choices = {multiple for multiple in (lower, lower + step) if max(step, least) <= multiple <= share.present}
    if not choices or abs(share.present - units) < min(abs(choice - units) for choice in choices):
        return share.present
    return min(choices, key=lambda choice: (abs(choice - units), choice))
