"""The tables of benchmarks/mujoco.py that set its evaluations against what others published."""

from __future__ import annotations

import numpy as np
from mujoco_plan import SETTINGS, TASKS
from mujoco_published import BEST, BEST_COLUMN, PUBLISHED, Column
from mujoco_results import Results, Row, best_evaluation, last_evaluation, number, told
from scores import FEWEST

PPOS = ("tuned", "penalty")  # whose algorithms are PPO by another name
HEADLINES = ("tuned", "paper")


def published(results: Results, names: tuple[str, ...]) -> list[str]:
    """Table 2, continued: against the published columns, of so many settings."""
    lines = ["### Against what was published", ""]
    for name in HEADLINES:
        lines += headline(name, {env: rows for env in TASKS if (rows := results.of(name, env))})
    lines += [
        "An evaluation is 20 episodes of most likely actions; a run has 10. `last` is "
        "the one at the end, its mean over seeds, and `best` the largest of the 10 means over seeds. Tianshou's "
        "numbers are of the second kind, "
        "over 10 seeds. The largest of several noisy means lies above the truth, and the more so the fewer seeds "
        "they are of: `best` over few seeds flatters more than Tianshou's over ten. Hence both, and `last` first. "
        f"The bar of a PPO is {BEST_COLUMN}; that of another algorithm is Tianshou's number. Seeds 0 and 1 are not "
        "among those of `tuned`, whose numbers were chosen by them; once seeds 2 to 4 chose too, between its lanes and "
        "fewer, longer ones (proximo/presets/mujoco.py).",
        "",
    ]
    for algo, others in PUBLISHED.items():
        bars = BEST if algo == "ppo" else others["Tianshou"]
        for name in (name for name in names if SETTINGS[name].algo == algo or (algo == "ppo" and name in PPOS)):
            there = {env: rows for env in TASKS if (rows := results.of(name, env))}
            if there:
                lines += [*against(name, there, bars, others), ""]
    return lines


def headline(name: str, there: dict[str, list[Row]]) -> list[str]:
    """Where one of PPO's presets stays behind: at the end of its runs, and at its best."""
    if not there:
        return []
    parts = list[str]()
    for when, measure in (("at the end of its runs", last_evaluation), ("at its best evaluation", best_evaluation)):
        found = {env: measure(rows) for env, rows in there.items()}
        behind = [f"{env}: {number(x)} of {number(BEST[env])}" for env, x in found.items() if x < BEST[env]]
        few = f" (not on {'; '.join(behind)})" if behind else ""
        parts.append(f"{when} on {len(found) - len(behind)} of {len(found)} tasks{few}")
    seeds = min(map(len, there.values()))
    pilot = f" That is a pilot's verdict: some task has fewer than {FEWEST} seeds." if seeds < FEWEST else ""
    return [f"`{name}` reaches the best published column {parts[0]}, and {parts[1]}.{pilot}", ""]


def against(name: str, there: dict[str, list[Row]], bars: Column, others: dict[str, Column]) -> list[str]:
    """One setting's table, judged at the end and at its best."""
    lines = [f"| {name} | last | best | bar | reached at the end | reached at its best | {' | '.join(others)} |"]
    lines += ["|---|---|---|---|---|---|" + "---|" * len(others)]
    for env, rows in there.items():
        last, best = last_evaluation(rows), best_evaluation(rows)
        cells = [told(np.array([row["eval_mean"] for row in rows])), number(best), number(bars[env])]
        cells += ["yes" if x >= bars[env] else f"**no** ({number(x - bars[env])})" for x in (last, best)]
        cells += [number(c[env]) if env in c else "–" for c in others.values()]
        lines.append(f"| {env} | {' | '.join(cells)} |")
    return lines
