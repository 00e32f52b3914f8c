"""What verification computes beside parity: ranges, layers' noise, rounding, weights one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeforge.models.quantized_weights import LinearWeight, PalettizedWeight
from edgeforge.quantizers._weights import linear, palettize
from edgeforge.verification._calibration import Range, ranges_check
from edgeforge.verification._coreml_program import half_precision, wiring
from edgeforge.verification._layer_noise import QUIET, LayerNoise, decibels, worst_first
from edgeforge.verification._rounded_weights import _problem


def test_decibels_of_uniform_rounding_follow_the_textbook() -> None:
    """SQNR of b bits over a uniform signal is 6.02 b dB (Bennett, 1948)."""
    values = np.random.default_rng(0).uniform(-1, 1, 200_000)
    for bits in (4, 6, 8):
        step = 2 / 2**bits
        rounded = (np.floor(values / step) + 0.5) * step
        assert decibels(values, rounded) == pytest.approx(6.02 * bits, abs=0.1)


def test_decibels_at_the_edges() -> None:
    ones = np.ones(4)
    assert decibels(ones, ones) == QUIET
    assert decibels(np.zeros(4), np.zeros(4)) == QUIET
    assert decibels(np.zeros(4), ones) == -QUIET
    assert decibels(ones, np.full(4, np.nan)) == -QUIET
    assert decibels(ones, 1.1 * ones) == pytest.approx(20)


def test_the_worst_layer_comes_first_by_output_where_that_is_known() -> None:
    layers = [LayerNoise("a", 10.0, 30.0), LayerNoise("b", 50.0, 20.0), LayerNoise("c", 25.0)]
    assert [layer.name for layer in worst_first(layers)] == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("factor", "passes"), [(1.0, True), (2.0, True), (0.9, True), (10.0, False), (0.3, False), (0.01, False)]
)
def test_ranges_that_fit(factor: float, passes: bool) -> None:
    values = np.random.default_rng(0).standard_normal((16, 100))
    low, high = np.asarray(values.min() * factor), np.asarray(values.max() * factor)
    check = ranges_check([(Range("x", low, high, 256), values)], "minmax")
    assert check.passed is passes, check.detail


def test_a_range_that_cuts_outliers_off_on_purpose() -> None:
    values = np.random.default_rng(0).standard_normal((64, 1000))
    low, high = (np.asarray(np.percentile(values, p)) for p in (1.5, 98.5))
    assert ranges_check([(Range("x", low, high, 256), values)], "minmax").passed is False
    assert ranges_check([(Range("x", low, high, 256), values)], "percentile").passed is True


def test_ranges_per_channel_and_of_nothing() -> None:
    values = np.random.default_rng(0).standard_normal((8, 3, 4, 4)) * np.asarray([1, 10, 100]).reshape(1, 3, 1, 1)
    largest = np.abs(values).max(axis=(0, 2, 3))
    assert ranges_check([(Range("x", -largest, largest, 256), values)], "minmax").passed
    assert not ranges_check([(Range("x", -largest[::-1], largest[::-1], 256), values)], "minmax").passed
    assert ranges_check([(Range("x", np.asarray(0.0), np.asarray(1.0), 256), np.zeros((4, 4)))], "minmax").passed


@pytest.fixture
def weight() -> np.ndarray:
    numbers: np.ndarray = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    return numbers


@pytest.mark.parametrize(
    ("bits", "block", "search"), [(4, 32, True), (4, None, False), (8, None, False), (8, 16, True)]
)
def test_what_the_quantizers_choose_is_the_nearest(
    weight: np.ndarray, bits: int, block: int | None, search: bool
) -> None:
    assert _problem(linear(weight, bits, block, search=search), weight.astype(np.float64)) is None
    weight[:4] = 0
    weight[5] *= 1e-3
    assert _problem(linear(weight, bits, block, search=search), weight.astype(np.float64)) is None


def test_an_integer_or_a_scale_that_is_not(weight: np.ndarray) -> None:
    for change in (1, -1):
        chosen = linear(weight, 4, 32)
        integers = chosen.integers.copy()
        place = np.unravel_index(int(np.argmin(np.abs(integers))), integers.shape)
        integers[place] += change
        problem = _problem(LinearWeight(4, integers, chosen.scales), weight.astype(np.float64))
        assert problem is not None
        assert "1 of 1024" in problem
    chosen = linear(weight, 8, None)
    scales = chosen.scales * np.float16(4)
    coarse = LinearWeight(8, np.rint(weight / scales.astype(np.float32)).astype(np.int8), scales)
    assert "16 of 16 scales" in str(_problem(coarse, weight.astype(np.float64)))


def test_palettes(weight: np.ndarray) -> None:
    chosen = palettize(weight, 4, 8)
    assert _problem(chosen, weight.astype(np.float64)) is None
    indices = chosen.indices.copy()
    indices[3, 3] = (indices[3, 3] + 1) % 16
    assert "1 of 1024" in str(_problem(PalettizedWeight(4, indices, chosen.palettes), weight.astype(np.float64)))


def test_wiring_allows_rounding_and_no_more() -> None:
    exact = np.full((4, 3), 1 / 3)

    def answering(values: np.ndarray) -> Any:
        return lambda _: values

    def torch_with(dtype: str) -> Any:
        return answering(exact if dtype == "float64" else exact + 1e-7)

    for moved, passes in ((1e-7, True), (1e-6, True), (1e-4, False), (np.nan, False)):
        found = answering(exact + moved)
        assert wiring(found, found, torch_with, {}).passed is passes
    # What rounding a scalar to float16 moves is allowed too.
    assert wiring(answering(exact + 1e-4), answering(exact + 2e-4), torch_with, {}).passed is True


def test_float16_that_overflows() -> None:
    single = np.full((4, 3), 1 / 3)
    broken = single.copy()
    broken[1] = np.nan
    assert half_precision(lambda _: single + 0.001, single, {}, weights_moved=0.0).passed is True
    assert half_precision(lambda _: single + 0.1, single, {}, weights_moved=0.0).passed is False
    check = half_precision(lambda _: broken, single, {}, weights_moved=1.0)
    assert check.passed is False
    assert "25.0% of the samples" in check.detail
