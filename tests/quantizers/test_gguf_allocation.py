"""The choice of types within a budget, against trying every one."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeforge.quantizers import _allocation
from edgeforge.quantizers._allocation import Choice, allocate, smallest

choices = st.lists(
    st.builds(Choice, st.just("x"), st.integers(1, 40).map(lambda size: 18 * size), st.floats(0, 10, allow_nan=False)),
    min_size=1,
    max_size=4,
)


def size_of(chosen: list[Choice] | tuple[Choice, ...]) -> int:
    return sum(choice.size_bytes for choice in chosen)


def cost_of(chosen: list[Choice] | tuple[Choice, ...]) -> float:
    return sum(choice.cost for choice in chosen)


@given(st.lists(choices, min_size=1, max_size=5), st.integers(0, 2000))
def test_it_is_the_best_there_is(options: list[list[Choice]], spare: int) -> None:
    budget = smallest(options) + spare
    chosen = allocate(options, budget)
    assert all(choice in own for choice, own in zip(chosen, options, strict=True))
    assert size_of(chosen) <= budget
    fitting = [every for every in itertools.product(*options) if size_of(every) <= budget]
    assert cost_of(chosen) == pytest.approx(min(map(cost_of, fitting)))


@given(st.lists(choices, min_size=1, max_size=4))
def test_below_the_smallest_there_is_nothing(options: list[list[Choice]]) -> None:
    assert size_of(allocate(options, smallest(options))) == smallest(options)
    with pytest.raises(ValueError, match=f"{smallest(options)} bytes are needed"):
        allocate(options, smallest(options) - 1)


def test_of_choices_that_cost_the_same_the_smallest_is_taken() -> None:
    options = [[Choice("large", 64, 1.0), Choice("small", 32, 1.0)], [Choice("only", 32, 0.0)]]
    assert [choice.type for choice in allocate(options, 10_000)] == ["small", "only"]


def test_with_coarse_steps_it_keeps_to_the_budget_and_uses_nearly_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes without a common divisor."""
    monkeypatch.setattr(_allocation, "BINS", 500)
    chance = np.random.RandomState(0)
    options = []
    for _ in range(20):
        base = int(chance.randint(1000, 9000))
        options.append([Choice(str(k), base * k + int(chance.randint(7)), 1.0 / k) for k in range(2, 9)])
    budget = int(1.9 * smallest(options))
    chosen = allocate(options, budget)
    assert 0.9 * budget < size_of(chosen) <= budget


def test_a_deep_model_takes_seconds() -> None:
    chance = np.random.RandomState(0)
    sizes = [84, 110, 136, 144, 176, 210, 272]
    options = [
        [Choice(str(size), 4096 * 56 * size, float(chance.rand()) * 2.0 ** (-size / 16)) for size in sizes]
        for _ in range(560)
    ]
    began = time.monotonic()
    chosen = allocate(options, 2 * smallest(options))
    assert time.monotonic() - began < 20
    assert size_of(chosen) <= 2 * smallest(options)
