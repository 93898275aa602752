"""Statistics of a few runs on several tasks (Agarwal et al. 2021, arXiv:2108.13264), in a few lines of NumPy.

Scores are a list of arrays, one a task, [..., runs] each; tasks may have different numbers of runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Scores = Sequence[np.ndarray]
Statistic = Callable[[Scores], np.ndarray]  # of scores [..., runs] -> [...]
DRAWS = 10_000
FEWEST = 3  # runs of a task below which resampling them says nothing of their spread
# How often `interval` at 95 % holds the true mean, by (runs a task, tasks), where scores are normal and spread alike on
# every task: tests/test_scores.py measures it.
COVERAGE = {(3, 3): 0.83, (3, 7): 0.87, (5, 3): 0.89, (5, 7): 0.91}


def normalised(score: np.ndarray, chance: float, best: float) -> np.ndarray:
    """Shifted and scaled so that `chance` is 0 and `best` is 1 (Schulman et al. 2017, section 6.1)."""
    return (score - chance) / (best - chance)


def even(scores: Scores) -> list[np.ndarray]:
    """The first runs of every task, as many as all tasks have."""
    count = min(task.shape[-1] for task in scores)
    return [task[..., :count] for task in scores]


def mean(scores: Scores) -> np.ndarray:
    """Mean of the tasks' means: a task weighs the same however many runs it has."""
    return np.mean([task.mean(-1) for task in scores], 0)


def iqm(scores: Scores) -> np.ndarray:
    """Interquartile mean over all runs together: a quarter of them, rounded down, is left out at either end.

    That is scipy.stats.trim_mean(x, 0.25), which rliable takes. Every run weighs the same, so a task weighs by how many
    it has: give it scores that are `even`.
    """
    x = np.concatenate(scores, -1)
    cut = x.shape[-1] // 4
    return np.sort(x, -1)[..., cut : x.shape[-1] - cut].mean(-1)


def interval(
    scores: Scores, statistic: Statistic, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float] | None:
    """The percentile bootstrap interval of a statistic, stratified by task; None where a task has too few runs.

    In each draw every task's runs are drawn anew, with replacement, from that task's runs alone. Where these are few it
    covers less than `level` (see COVERAGE); one run, drawn again and again, has no spread at all.
    """
    if min(map(len, scores)) < FEWEST:
        return None
    random = np.random.default_rng(seed)
    drawn = [task[random.integers(len(task), size=(draws, len(task)))] for task in scores]
    low, high = np.quantile(statistic(drawn), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
