from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeforge.renderers._axis import Axis, axis_for

positive = st.floats(min_value=1e-6, max_value=1e9)


@given(st.lists(positive, min_size=1, max_size=8))
def test_every_value_lies_inside_and_in_order(values: list[float]) -> None:
    axis = axis_for(values, (300, 10))
    places = [axis(value) for value in sorted(values)]
    assert places == sorted(places, reverse=True), "upwards on the screen"
    assert all(10 <= place <= 300 for place in places)


@given(st.lists(positive, min_size=1, max_size=8) | st.lists(positive | st.floats(-1e6, 0), min_size=1, max_size=8))
def test_ticks_are_few_inside_and_ascending(values: list[float]) -> None:
    axis = axis_for(values, (0, 100))
    ticks = axis.ticks()
    assert len(ticks) <= 12
    assert ticks == sorted(ticks)
    assert all(-0.01 <= axis(tick) <= 100.01 for tick in ticks)


def test_round_numbers() -> None:
    assert Axis(0.9, 0.95, 0, 1).ticks() == [0.9, 0.91, 0.92, 0.93, 0.94, 0.95]
    assert Axis(0.44, 0.96, 0, 1).ticks() == [0.5, 0.6, 0.7, 0.8, 0.9]
    assert Axis(-30, 40, 0, 1).ticks() == [-20, 0, 20, 40]
    assert Axis(4e5, 1.2e7, 0, 1, log=True).ticks() == [5e5, 1e6, 2e6, 5e6, 1e7]
    assert Axis(1e-3, 1e3, 0, 1, log=True).ticks() == [1e-3, 1e-2, 0.1, 1, 10, 100, 1000]
    assert len(Axis(1e-75, 1.0, 0, 1, log=True).ticks()) <= 9


def test_a_logarithm_is_taken_only_where_values_span_much() -> None:
    assert axis_for([1.0, 3.9], (0, 1)).log is False
    assert axis_for([1.0, 4.1], (0, 1)).log is True
    assert axis_for([0.0, 4.1], (0, 1)).log is False
    assert Axis(1, 100, 0, 100, log=True)(10) == pytest.approx(50)
