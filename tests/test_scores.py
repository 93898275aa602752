"""The benchmark's statistics against values known by hand, and intervals that hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.scores import interval, iqm, mean, normalised


def test_chance_is_zero_and_the_best_is_one() -> None:
    np.testing.assert_allclose(normalised(np.array([-50.0, -30.0, 30.0, 50.0]), -50, 30), [0, 0.25, 1, 1.25])
    np.testing.assert_allclose(normalised(np.array([-8.0]), -40, -4), [32 / 36])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 2.0, 9.0], 4.0),  # a quarter of three is none
        ([100.0, 2.0, 4.0, -100.0], 3.0),
        ([0.0, 1.0, 2.0, 3.0, 1000.0], 2.0),  # one of five at either end
        ([8.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 4.5),
        ([-9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 99.0], 3.0),
    ],
)
def test_iqm_by_hand(values: list[float], expected: float) -> None:
    """As scipy.stats.trim_mean(values, 0.25) has it."""
    assert iqm(np.array(values)) == pytest.approx(expected)
    np.testing.assert_allclose(iqm(np.array([values, values[::-1]])), [expected, expected])


def test_the_bootstrap_is_stratified() -> None:
    """Runs of a task never stand for another's: tasks that are far apart do not widen the interval."""
    apart = [np.zeros(4), np.ones(4)]
    assert interval(apart, mean) == (0.5, 0.5)
    assert interval(apart, iqm) == (0.5, 0.5)
    assert interval([np.zeros(3), np.full(6, 9.0)], mean) == (6, 6)
    low, high = interval([np.array([0.0, 1.0])], mean)
    assert (low, high) == (0, 1)


def test_the_interval_by_hand() -> None:
    """Of two runs 0 and 1, the mean of a draw is 0, ½ or 1, with chances of ¼, ½ and ¼."""
    scores = [np.array([0.0, 1.0])]
    assert interval(scores, mean, level=0.4) == (0.5, 0.5)
    assert interval(scores, mean, level=0.6) == (0, 1)


@pytest.mark.parametrize("statistic", [mean, iqm])
def test_the_interval_covers_what_it_promises(statistic: object) -> None:
    """Three tasks of 20 runs, many times over: 95 % of the intervals hold the truth, give or take."""
    random, held, times = np.random.default_rng(1), 0, 400
    for i in range(times):
        scores = [random.normal(0, scale, 20) for scale in (0.5, 1.0, 2.0)]  # symmetric: both statistics are 0
        low, high = interval(scores, statistic, draws=400, seed=i)  # type: ignore[arg-type]
        held += low <= 0 <= high
    assert 0.90 <= held / times <= 0.98
