"""Statistics against other libraries, and the verdict against comparisons whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from edgeforge.core.measurement import SAME_FILE_MOVES, bootstrap_median, difference, percentile

ROUNDS, TRIALS = 40, 100


def test_percentiles_are_numpys() -> None:
    values = np.random.default_rng(0).lognormal(size=37)
    for q in (0, 2.5, 50, 90, 97.5, 100):
        assert percentile(list(values), q) == pytest.approx(float(np.percentile(values, q)))


def test_one_sample_has_no_width() -> None:
    assert bootstrap_median([3.0]) == (3.0, 3.0)


@pytest.mark.parametrize(
    ("ci95", "shown"),
    [
        ((1.03, 1.2), "faster"),
        ((1.01, 1.2), "no difference shown"),  # beyond 1, but not beyond what two copies of a file differ by
        ((0.9, 1.1), "no difference shown"),
        ((0.8, 0.99), "no difference shown"),
        ((0.8, 0.97), "slower"),
        ((1 + SAME_FILE_MOVES, 2.0), "no difference shown"),
        ((0.5, 1 / (1 + SAME_FILE_MOVES)), "no difference shown"),
    ],
)
def test_what_an_interval_shows(ci95: tuple[float, float], shown: str) -> None:
    assert difference(ci95) == shown


def test_a_files_verdict_is_the_others_turned_round() -> None:
    turned = {"faster": "slower", "slower": "faster", "no difference shown": "no difference shown"}
    for low in np.linspace(0.8, 1.25, 46):
        for high in np.linspace(low, low + 0.3, 7):
            assert difference((1 / high, 1 / low)) == turned[difference((low, high))]


def trials(slowdown: float, noise: float, *, seed: int) -> list[tuple[float, float]]:
    """Intervals of comparisons on a simulated machine.

    Each process puts the files where one of them is a little slower for all of its rounds (standard deviation 0.7 %).
    Each round has lognormal noise, which half of it carries on to the next round, and every twentieth sample was
    disturbed and took up to half as long again.
    """
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(TRIALS):
        own = rng.normal(0, noise, ROUNDS)
        carried = np.convolve(own, 0.5 ** np.arange(8))[:ROUNDS] * np.sqrt(0.75)
        disturbed = [1 + rng.uniform(0, 0.5, ROUNDS) * (rng.random(ROUNDS) < 0.05) for _ in range(2)]
        ratios = np.exp(carried + rng.normal(0, 0.007)) / (1 + slowdown) * disturbed[0] / disturbed[1]
        found.append(bootstrap_median(list(ratios), resamples=200))
    return found


@pytest.mark.parametrize("noise", [0.003, 0.02, 0.06], ids=["idle", "in between", "busy"])
def test_the_same_file_is_called_different_in_at_most_a_tenth_of_trials(noise: float) -> None:
    intervals = trials(0.0, noise, seed=1)
    assert sum(difference(ci95) != "no difference shown" for ci95 in intervals) <= 0.1 * TRIALS
    # What the interval alone would call, which knows nothing of the process and takes rounds for independent.
    assert sum(not low <= 1 <= high for low, high in intervals) > 0.1 * TRIALS


@pytest.mark.parametrize("noise", [0.003, 0.02, 0.06], ids=["idle", "in between", "busy"])
def test_a_slowdown_of_a_tenth_is_found_in_at_least_nine_of_ten_trials(noise: float) -> None:
    assert sum(difference(ci95) == "slower" for ci95 in trials(0.1, noise, seed=2)) >= 0.9 * TRIALS
    assert sum(difference(ci95) == "faster" for ci95 in trials(-1 / 11, noise, seed=3)) >= 0.9 * TRIALS
