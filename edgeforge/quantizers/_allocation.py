"""Which type each tensor gets, so that the file fits a budget and the errors cost least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 65536
"""Steps a budget is divided into, where sizes have no larger common divisor: above 99.6 % of it can be used."""


@dataclass(frozen=True)
class Choice:
    """One type for one tensor."""

    type: str
    size_bytes: int
    cost: float


def smallest(options: Sequence[Sequence[Choice]]) -> int:
    """The least bytes that one choice for each tensor can take."""
    return sum(min(choice.size_bytes for choice in choices) for choices in options)


def allocate(options: Sequence[Sequence[Choice]], budget: int) -> list[Choice]:
    """One choice for each tensor: the least total cost in at most `budget` bytes, of equal ones the smallest.

    A knapsack with a choice in each class, solved by dynamic programming over bytes. The solution is exact where the
    sizes' greatest common divisor leaves at most `BINS` steps, as it does for models of the usual widths; otherwise
    each size counts as the next multiple of a step. Raises ValueError where nothing fits.
    """
    least = smallest(options)
    if least > budget:
        raise ValueError(f"{least} bytes are needed, and {budget} are there")
    # What every choice of a tensor takes is no longer in question; what is left is divided into steps.
    floors = [min(choice.size_bytes for choice in choices) for choices in options]
    spare = min(budget - least, sum(max(c.size_bytes for c in cs) for cs in options) - least)
    extra = [[c.size_bytes - floor for c in cs] for cs, floor in zip(options, floors, strict=True)]
    step = math.gcd(*(size for sizes in extra for size in sizes))
    if step == 0:  # every tensor's choices are of one size
        return [min(choices, key=lambda choice: choice.cost) for choices in options]
    step = max(step, -(-spare // BINS))
    return _solve(options, [[-(-size // step) for size in sizes] for sizes in extra], spare // step)


def _solve(options: Sequence[Sequence[Choice]], steps: Sequence[Sequence[int]], room: int) -> list[Choice]:
    """`steps`: the size of each choice; `room`: how many there are in all."""
    best = np.zeros(room + 1)  # the least cost of the tensors so far in at most so many steps
    taken = np.zeros((len(options), room + 1), dtype=np.uint8)
    for index, (choices, sizes) in enumerate(zip(options, steps, strict=True)):
        found = np.full(room + 1, np.inf)
        # The smallest first, so that of equal costs it stays.
        for number in sorted(range(len(choices)), key=lambda number: sizes[number]):
            size = sizes[number]
            if size > room:
                continue
            with_it = best[: room + 1 - size] + choices[number].cost
            better = with_it < found[size:]
            found[size:][better] = with_it[better]
            taken[index, size:][better] = number
        best = found
    chosen: list[Choice] = []
    left = int(np.argmin(best))
    for index in reversed(range(len(options))):
        number = int(taken[index, left])
        chosen.append(options[index][number])
        left -= steps[index][number]
    return chosen[::-1]
