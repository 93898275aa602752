"""Statistics of a few runs on several tasks (Agarwal et al. 2021, arXiv:2108.13264), in a few lines of NumPy.

Scores are a list of arrays, one a task, [runs] each; tasks may have different numbers of runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]  # [..., n] -> [...]
DRAWS = 10_000


def normalised(score: np.ndarray, chance: float, best: float) -> np.ndarray:
    """Shifted and scaled so that `chance` is 0 and `best` is 1 (Schulman et al. 2017, section 6.1)."""
    return (score - chance) / (best - chance)


def mean(x: np.ndarray) -> np.ndarray:
    return x.mean(-1)


def iqm(x: np.ndarray) -> np.ndarray:
    """Interquartile mean along the last axis: a quarter of the values, rounded down, is left out at either end.

    That is scipy.stats.trim_mean(x, 0.25), which rliable takes.
    """
    cut = x.shape[-1] // 4
    return np.sort(x, -1)[..., cut : x.shape[-1] - cut].mean(-1)


def interval(
    scores: Sequence[np.ndarray], statistic: Statistic, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic of all scores together, stratified by task.

    In each draw every task's runs are drawn anew, with replacement, from that task's runs alone.
    """
    random = np.random.default_rng(seed)
    drawn = [task[random.integers(len(task), size=(draws, len(task)))] for task in scores]
    low, high = np.quantile(statistic(np.concatenate(drawn, -1)), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
