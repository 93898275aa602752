"""What benchmarks/mujoco.py found, as its tables and pictures ask for it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from mujoco_plan import EVERY, SETTINGS
from scores import normalised

Row = dict[str, Any]
LARGE = 200  # returns from which a decimal says nothing


class Results:
    """The runs of mujoco.json, and what chance scores."""

    def __init__(self, path: Path) -> None:
        told = json.loads(path.read_text())
        self.chance = {env: score["mean"] for env, score in told["random"].items()}
        self.rows: list[Row] = [row for row in told["runs"] if row["seed"] >= SETTINGS[row["setting"]].first]

    def of(self, setting: str, env: str) -> list[Row]:
        return [row for row in self.rows if (row["setting"], row["env"]) == (setting, env)]

    def scores(self, setting: str, env: str) -> np.ndarray:
        """The paper's: the mean of the last 100 training episodes, of each seed."""
        return np.array([row["last_100"] for row in self.of(setting, env)])

    def whole(self, setting: str, tasks: Iterable[str]) -> bool:
        return all(self.of(setting, env) for env in tasks)


def ablation_scores(results: Results, name: str, tasks: Iterable[str], among: list[str]) -> list[np.ndarray]:
    """Normalised by the best run of the settings it is `among`."""
    best = {env: max(results.scores(other, env).max() for other in among) for env in tasks}
    return [normalised(results.scores(name, env), results.chance[env], best[env]) for env in tasks]


def last_evaluation(rows: list[Row]) -> float:
    """At the end, the mean over seeds."""
    return float(np.mean([row["eval_mean"] for row in rows]))


def best_evaluation(rows: list[Row]) -> float:
    """The largest over evaluations of the mean over seeds, of the evaluations that every run has."""
    runs = [{round(step / EVERY): value for step, value in row["evals"]} for row in rows]
    return max(float(np.mean([run[nth] for run in runs])) for nth in set.intersection(*map(set, runs)))


def told(values: np.ndarray) -> str:
    """Mean ± standard deviation (how many)."""
    if not len(values):
        return "–"
    large = abs(values.mean()) >= LARGE
    spread = f" ± {values.std(ddof=1):,.{0 if large else 1}f}" if len(values) > 1 else ""
    return f"{number(values.mean())}{spread} ({len(values)})"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= LARGE else f"{value:.1f}"
