"""Allocation against exact fractions and brute force."""

from __future__ import annotations

import math
from collections import defaultdict
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeforge.core.errors import ModelError
from edgeforge.structures._allocation import Share, allocate, check_ratio

RATIOS = st.integers(0, 99).map(lambda percent: percent / 100)
SCORES = st.lists(st.floats(0, 100), min_size=1, max_size=40)


def floor_of(initial: int, ratio: float) -> int:
    """What is left, in exact arithmetic on the ratio as it was written."""
    return math.floor(initial * (1 - Fraction(str(ratio))))


def largest_ratio(error: ModelError) -> float:
    assert error.remedy is not None
    return float(error.remedy.partition("at most ")[2].partition(",")[0])


@given(initial=st.integers(1, 400), ratio=RATIOS)
def test_alone_a_layer_keeps_what_exact_arithmetic_says(initial: int, ratio: float) -> None:
    share = Share("layer", initial, 1, [0.0] * initial, ratio)
    try:
        check_ratio("layer", initial, 1, ratio=ratio)
    except ModelError as error:
        assert floor_of(initial, ratio) == 0
        assert "layer" in str(error)
        if initial > 1:
            check_ratio("layer", initial, 1, ratio=largest_ratio(error))
    else:
        assert allocate([share], max_ratio=0.9, round_to=1) == [floor_of(initial, ratio)]


def test_the_message_names_layer_width_and_the_largest_ratio_that_works() -> None:
    with pytest.raises(ModelError, match=r"ratio 0.9 would leave stem with nothing: it has 4 channels") as caught:
        check_ratio("stem", 4, 1, ratio=0.9)
    assert largest_ratio(caught.value) == 0.75
    check_ratio("stem", 4, 1, ratio=0.75)


def test_a_second_step_counts_from_the_width_before_the_first() -> None:
    assert allocate([Share("a", 10, 1, [0.0] * 8, 0.5)], max_ratio=0.9, round_to=1) == [5]


@settings(max_examples=200)
@given(scores=st.lists(SCORES, min_size=1, max_size=6), ratio=RATIOS, cap=RATIOS)
def test_a_pool_loses_its_lowest_scores_and_no_layer_too_many(
    scores: list[list[float]], ratio: float, cap: float
) -> None:
    shares = [Share(str(index), len(values), 1, values, ratio, "pool") for index, values in enumerate(scores)]
    total = sum(map(len, scores))
    least = [max(1, floor_of(len(values), cap)) for values in scores]
    try:
        kept = allocate(shares, max_ratio=cap, round_to=1)
    except ModelError as error:
        assert sum(least) > floor_of(total, ratio)
        again = [Share(s.name, s.initial, 1, s.scores, largest_ratio(error), "pool") for s in shares]
        assert sum(allocate(again, max_ratio=cap, round_to=1)) >= sum(least)
        return
    assert sum(kept) == floor_of(total, ratio)
    assert all(low <= count for low, count in zip(least, kept, strict=True))
    gone = [sorted(values)[: len(values) - count] for values, count in zip(scores, kept, strict=True)]
    stay = [sorted(values)[len(values) - count :] for values, count in zip(scores, kept, strict=True)]
    highest_gone = max((value for values in gone for value in values), default=-math.inf)
    for values, count, low in zip(stay, kept, least, strict=True):
        if count > low:  # not held back by its cap
            assert values[0] >= highest_gone


def test_pools_are_ranked_apart() -> None:
    shares = [Share("a", 4, 1, [1, 2, 3, 4], 0.5, "one"), Share("b", 4, 1, [10, 20, 30, 40], 0.5, "two")]
    assert allocate(shares, max_ratio=0.9, round_to=1) == [2, 2]


def test_a_unit_of_many_heads_costs_as_many_channels() -> None:
    """16 channels to remove: the two cheapest units take 4 each (4 heads), then 8 single channels go."""
    attention = Share("attention", 8, 4, [0.1, 0.2, 9, 9, 9, 9, 9, 9], 0.25, "pool")
    linear = Share("linear", 32, 1, [1.0] * 32, 0.25, "pool")
    assert allocate([attention, linear], max_ratio=0.9, round_to=1) == [6, 24]


@given(
    present=st.integers(1, 100),
    kept=st.integers(1, 100),
    round_to=st.integers(1, 32),
    block=st.sampled_from([1, 2, 3, 4, 12]),
)
def test_rounding_takes_the_nearest_width_there_is(present: int, kept: int, round_to: int, block: int) -> None:
    kept = min(present, kept)
    ratio = float(1 - Fraction(kept, present))
    share = Share("a", present, block, [0.0] * present, ratio)
    (found,) = allocate([share], max_ratio=0.9, round_to=round_to)
    widths = [units for units in range(1, present + 1) if units * block % round_to == 0 or units == present]
    distances = defaultdict(list)
    for units in widths:
        distances[abs(units - kept)].append(units)
    assert found in distances[min(distances)]


def test_rounding_examples() -> None:
    """The widths of the Fashion-MNIST teacher at ratio 0.3 in sixteens; a layer of 8 has no smaller multiple."""
    for width, wanted in ((48, 32), (96, 64), (240, 160), (8, 8), (16, 16), (24, 16)):
        share = Share("a", width, 1, [0.0] * width, 0.3)
        assert allocate([share], max_ratio=0.9, round_to=16) == [wanted], width
