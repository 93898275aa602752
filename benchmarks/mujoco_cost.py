"""The tables of benchmarks/mujoco.py of what its runs cost, and of benchmarks/mujoco_seconds.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from mujoco_plan import SETTINGS, STEPS, TASKS
from mujoco_published import BEST
from mujoco_results import Results, Row

HALF = 0.5  # of the way from chance to the best published PPO
BESIDE = "mujoco-seconds.json"  # the results of mujoco_seconds.py
AGAINST = "paper"  # the setting whose seconds the others' are compared with there


def cost(results: Results, main: tuple[str, ...], folder: Path) -> list[str]:
    """Table 3: steps and seconds."""
    names = [name for name in main if any(results.of(name, env) for env in TASKS)]
    lines = [
        "## 3. Steps and seconds",
        "",
        f"Seconds of collecting and learning for {STEPS:,} steps at the speed of a run's median update, so without "
        "compiling and evaluating, in one process with one thread: the median over seeds. Other work ran on the "
        "machine at the same time, more beside some runs than beside others: these columns do not say which algorithm "
        "is the faster. The seconds further down are those of the whole run, with compiling.",
        "",
        f"| task | {' | '.join(names)} |",
        "|---|" + "---|" * len(names),
    ]
    for env in TASKS:
        there = {name: rows for name in names if (rows := results.of(name, env))}
        seconds = {k: STEPS / np.median([row["steps_per_second"] for row in rows]) for k, rows in there.items()}
        each = [f"{seconds[name]:.0f}" if name in seconds else "–" for name in names]
        lines.append(f"| {env} | {' | '.join(each)} |")
    if (beside := folder / BESIDE).exists():
        lines += ["", *side_by_side(json.loads(beside.read_text()))]
    lines += ["", "Steps and seconds until the mean over seeds is half of the way from chance to the best"]
    lines += ["published PPO; `at the start` where the first episodes that ended are there already.", ""]
    lines += [f"| task | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for env in TASKS:
        goal = results.chance[env] + HALF * (BEST[env] - results.chance[env])
        lines.append(f"| {env} | {' | '.join(reached(results.of(name, env), goal) for name in names)} |")
    return [*lines, ""]


def reached(rows: list[Row], goal: float) -> str:
    """When the mean over seeds first gets there."""
    if not rows:
        return "–"
    curves = [np.array(row["curve"]) for row in rows]
    steps = np.linspace(max(c[0, 0] for c in curves), min(c[-1, 0] for c in curves), 500)
    returns, seconds = (np.mean([np.interp(steps, c[:, 0], c[:, i]) for c in curves], 0) for i in (2, 1))
    there = np.flatnonzero(returns >= goal)
    if not len(there):
        return "never"
    return f"{steps[there[0]] / 1000:.0f}k, {seconds[there[0]]:.0f} s" if there[0] else "at the start"


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
        "TRPO is said to take some ten times as long as PPO; what it takes here is above. In a collection of "
        f"{trpo.rollout:,} rows its policy takes one step, found by {t.cg_iterations} iterations of conjugate gradient "
        f"whose Fisher-vector products are taken on {100 * t.fisher_fraction:.0f} % of the rows, and its value "
        f"function {t.epochs * t.minibatches} gradient steps of {trpo.rollout // t.minibatches} rows "
        f"({t.epochs} epochs). PPO takes {p.epochs * p.minibatches} of {ppo.rollout // p.minibatches} rows "
        f"({p.epochs} epochs) with policy and value."
    )
