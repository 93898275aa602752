"""The tables of benchmarks/mujoco.py of what its runs cost, and of benchmarks/mujoco_seconds.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from mujoco_plan import SETTINGS, STEPS, TASKS
from mujoco_published import BEST
from mujoco_results import Results, Row

HALF = 0.5  # of the way from chance to the best published column
BESIDE = "mujoco-seconds.json"  # the results of mujoco_seconds.py
AGAINST = "paper"  # the setting whose seconds the others' are compared with there


class Clock:
    """What STEPS steps of a setting take on a task, from turns taken side by side.

    The runs themselves had more beside them or less, and compiled or found what had been compiled: their own clocks do
    not compare algorithms.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / BESIDE
        self.told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"tasks": []}
        self.seconds = {task["env"]: task["seconds"] for task in self.told["tasks"]}

    def at(self, name: str, env: str) -> float | None:
        """Seconds a step; None where it was not measured."""
        found = self.seconds.get(env, {}).get(name)
        return None if found is None else found / STEPS


def cost(results: Results, main: tuple[str, ...], clock: Clock) -> list[str]:
    """Table 3: steps and seconds."""
    names = [name for name in main if any(results.of(name, env) for env in TASKS)]
    lines = ["## 3. Steps and seconds", "", *(side_by_side(clock.told) if clock.seconds else [])]
    lines += ["", "Steps until the mean over seeds is half of the way from chance to the best published column, and"]
    lines += ["the seconds that so many take by the table above; `at the start` where the first episodes that ended"]
    lines += ["are there already.", "", f"| task | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for env in TASKS:
        goal = results.chance[env] + HALF * (BEST[env] - results.chance[env])
        there = [reached(results.of(name, env), goal, clock.at(name, env)) for name in names]
        lines.append(f"| {env} | {' | '.join(there)} |")
    return [*lines, ""]


def reached(rows: list[Row], goal: float, seconds: float | None) -> str:
    """When the mean over seeds first gets there, where a step takes so many seconds."""
    if not rows:
        return "–"
    curves = [np.array(row["curve"]) for row in rows]
    steps = np.linspace(max(c[0, 0] for c in curves), min(c[-1, 0] for c in curves), 500)
    returns = np.mean([np.interp(steps, c[:, 0], c[:, 2]) for c in curves], 0)
    there = np.flatnonzero(returns >= goal)
    if not len(there):
        return "never"
    if not there[0]:
        return "at the start"
    first = steps[there[0]]
    return f"{first / 1000:.0f}k" + (f", {first * seconds:.0f} s" if seconds else "")


def side_by_side(told: dict[str, Any]) -> list[str]:
    """Seconds of algorithms that took turns, from the results of mujoco_seconds.py."""
    names = list(told["tasks"][0]["seconds"])
    lines = [
        f"### Seconds for {STEPS:,} steps, and against PPO",
        "",
        f"Collecting and learning alone, in {told['rounds']} rounds of a turn each, every round in another order; a "
        f"turn is the whole updates that hold {told['steps']:,} steps. The median seconds, and the median over rounds "
        f"of their ratio to `{AGAINST}` (smallest to largest).",
        "",
        f"    {told['command']}",
        "",
        f"| task | {' | '.join(names)} |",
        "|---|" + "---|" * len(names),
    ]
    for task in told["tasks"]:
        cells = [f"{task['seconds'][AGAINST]:.0f}"]
        for name in names[1:]:
            middle, low, high = task["ratio"][name]
            cells.append(f"{task['seconds'][name]:.0f}, × {middle:.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {task['env']} | {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
    made = f"Commit {told['commit']}. Load before: {told['load_before']:.1f}. Machine: {told['machine']}. {versions}."
    return [*lines, "", why(told["tasks"][0]["env"]), "", made]


def why(env: str) -> str:
    """What a trust region and PPO do in an update, with the settings' numbers."""
    ppo, trpo = (SETTINGS[name].config(env) for name in (AGAINST, "trpo"))
    p, t = ppo.algorithm, trpo.algorithm
    return (
        "An update of TRPO is often taken to cost some ten of PPO's; what it costs here is above. In a collection of "
        f"{trpo.rollout:,} rows its policy takes one step, found by {t.cg_iterations} iterations of conjugate gradient "
        f"whose Fisher-vector products are taken on {100 * t.fisher_fraction:.0f} % of the rows, and its value "
        f"function {t.epochs * t.minibatches} gradient steps of {trpo.rollout // t.minibatches} rows "
        f"({t.epochs} epochs). PPO takes {p.epochs * p.minibatches} of {ppo.rollout // p.minibatches} rows "
        f"({p.epochs} epochs) with policy and value."
    )
