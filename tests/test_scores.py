"""The benchmark's statistics against values known by hand, and intervals that hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.scores import COVERAGE, Statistic, even, interval, iqm, mean, normalised


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
    assert iqm([np.array(values)]) == pytest.approx(expected)
    np.testing.assert_allclose(iqm([np.array([values, values[::-1]])]), [expected, expected])


def test_a_task_weighs_the_same_however_many_runs_it_has() -> None:
    scores = [np.array([0.0, 0.0, 0.0, 0.0, 0.0]), np.array([1.0, 1.0, 4.0])]
    assert mean(scores) == 1.0  # of 0 and 2; of all runs together it would be ¾
    assert [task.tolist() for task in even(scores)] == [[0.0, 0.0, 0.0], [1.0, 1.0, 4.0]]
    assert iqm(even(scores)) == 0.5  # of 0, 0, 1, 1; of all runs together it would be ¼


def test_the_bootstrap_is_stratified() -> None:
    """Runs of a task never stand for another's: tasks that are far apart do not widen the interval."""
    apart = [np.zeros(4), np.ones(4)]
    assert interval(apart, mean) == (0.5, 0.5)
    assert interval(apart, iqm) == (0.5, 0.5)
    assert interval([np.zeros(3), np.full(6, 9.0)], mean) == (4.5, 4.5)
    assert interval([np.array([0.0, 0.0, 1.0])], mean) == (0, 1)


def test_of_one_run_or_two_there_is_no_interval() -> None:
    """One run drawn again and again has no spread, which would look like certainty."""
    assert interval([np.arange(9.0), np.ones(1)], mean) is None
    assert interval([np.array([0.0, 1.0])], mean) is None
    assert interval([np.arange(3.0)], mean) is not None


def test_the_interval_by_hand() -> None:
    """Of three runs 0, 0 and 1, the mean of a draw is 0, ⅓, ⅔ or 1, with chances of 8, 12, 6 and 1 in 27."""
    scores = [np.array([0.0, 0.0, 1.0])]
    assert interval(scores, mean, level=0.3) == pytest.approx((1 / 3, 1 / 3))
    assert interval(scores, mean, level=0.6) == pytest.approx((0, 2 / 3))


@pytest.mark.parametrize("statistic", [mean, iqm])
def test_the_interval_covers_what_it_promises(statistic: Statistic) -> None:
    """Three tasks of 20 runs, many times over: 95 % of the intervals hold the truth, give or take."""
    assert 0.90 <= covered(20, (0.5, 1.0, 2.0), statistic, times=400) <= 0.98


@pytest.mark.parametrize(("runs", "tasks"), COVERAGE)
def test_of_few_runs_it_covers_less_and_the_page_may_say_how_much(runs: int, tasks: int) -> None:
    """The standard error of a share of 4,000 intervals is 0.006."""
    assert abs(covered(runs, (1.0,) * tasks, mean, times=4000) - COVERAGE[runs, tasks]) <= 0.015


def covered(runs: int, spreads: tuple[float, ...], statistic: Statistic, times: int) -> float:
    """The share of intervals that hold the truth; scores are normal about 0, and so both statistics are 0."""
    random, held = np.random.default_rng(1), 0
    for i in range(times):
        found = interval([random.normal(0, spread, runs) for spread in spreads], statistic, draws=400, seed=i)
        assert found is not None
        held += found[0] <= 0 <= found[1]
    return held / times
