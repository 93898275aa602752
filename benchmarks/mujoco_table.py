"""The tables of benchmarks/mujoco.py, from its results: mujoco.md."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from mujoco_pictures import draw
from mujoco_plan import FASTEST, SETTINGS, STEPS, TASKS
from mujoco_published import ABLATION, BEST, LABELS, PUBLISHED
from mujoco_results import Results, Row, ablation_scores, best_evaluation
from scores import interval, iqm, mean, normalised

MAIN = ("tuned", "paper", "penalty", "trpo", "a2c", "natural")  # of the second table and the third
PPOS = ("tuned", "penalty")  # whose algorithms are PPO by another name
PILOT = 10  # seeds below which a number is a pilot
HALF = 0.5  # of the way from chance to the best published PPO
LARGE = 200  # returns from which a decimal says nothing


def write_table(path: Path) -> None:
    """mujoco.md and the pictures, beside the results."""
    if not path.exists() or not (results := Results(path)).rows:
        return
    pictures = draw(results, path.parent)
    lines = ["# MuJoCo: PPO and its family against what was published", "", *about(results)]
    lines += [*ablation(results), *family(results), *published(results), *cost(results)]
    lines += ["## Pictures", "", *(f"![{name}]({file})\n" for name, file in pictures), *where(results)]
    path.with_suffix(".md").write_text("\n".join(lines).rstrip() + "\n")


def about(results: Results) -> list[str]:
    seeds = [len(results.of(name, env)) for name in SETTINGS for env in TASKS if results.of(name, env)]
    steps = f"{min(row['steps'] for row in results.rows):,} to {max(row['steps'] for row in results.rows):,}"
    few = f"{min(seeds)} to {max(seeds)}" if min(seeds) < max(seeds) else f"{max(seeds)}"
    return [
        f"{len(results.rows)} runs of {STEPS:,} steps ({steps} were taken: whole collections alone), v5 tasks, {few} "
        f"seeds (0, 1, 2, …) a number. Fewer than {PILOT} seeds are a pilot"
        + (", which all of these are." if max(seeds) < PILOT else "."),
        "",
        "A score is the mean return of a run's last 100 training episodes, actions drawn (the PPO paper's measure). "
        "An evaluation is 20 episodes of most likely actions. `tuned` and `paper` are presets of PPO-Clip, "
        "the others say what differs from `paper`; the settings of every run are in mujoco.json. The commands:",
        "",
        "    python benchmarks/mujoco.py            # trains what is missing, resumes what was stopped",
        "    python benchmarks/mujoco.py --table    # this page and its pictures",
        "",
    ]


def ablation(results: Results) -> list[str]:
    """Table 1: which surrogate."""
    names = [name for name in ABLATION if results.whole(name, FASTEST)]
    everywhere = [name for name in ABLATION if results.whole(name, TASKS)]
    if not names:
        return []
    short = ", ".join(env.removesuffix("-v5") for env in FASTEST)
    lines = [
        "## 1. The surrogate",
        "",
        "Average normalised score as in section 6.1 of the paper: in each task chance is 0 and the best run of the "
        "compared settings 1; the mean over tasks and seeds, with its 95 % stratified bootstrap interval. The paper's "
        "are over all seven tasks in their first versions, and relative to the best of its own runs: orders compare, "
        "levels hardly.",
        "",
        f"| surrogate | {short} | runs | all seven tasks | runs | the paper, all seven |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        few = cells(results, name, FASTEST, names)
        many = cells(results, name, TASKS, everywhere) if name in everywhere else ("–", "–")
        lines.append(f"| {LABELS[name]} | {few[0]} | {few[1]} | {many[0]} | {many[1]} | {ABLATION[name]:.2f} |")
    return [*lines, ""]


def cells(results: Results, name: str, tasks: Iterable[str], among: list[str]) -> tuple[str, str]:
    scores = ablation_scores(results, name, tasks, among)
    low, high = interval(scores, mean)
    return f"{np.concatenate(scores).mean():.2f} ({low:.2f} to {high:.2f})", str(sum(map(len, scores)))


def family(results: Results) -> list[str]:
    """Table 2: the algorithms."""
    names = [name for name in MAIN if any(results.of(name, env) for env in TASKS)]
    lines = ["## 2. The family", "", "Mean ± standard deviation over seeds of the score (number of seeds)."]
    lines += ["", f"| task | chance | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for env in TASKS:
        found = [told(results.scores(name, env)) for name in names]
        lines.append(f"| {env} | {number(results.chance[env])} | {' | '.join(found)} |")
    complete = [name for name in names if results.whole(name, TASKS)]
    if complete:
        lines += ["", "All tasks together, where chance is 0 and the best published PPO 1: mean and interquartile mean"]
        lines += ["with 95 % stratified bootstrap intervals (Agarwal et al. 2021).", ""]
        lines += ["| | mean | interquartile mean | runs |", "|---|---|---|---|"]
    for name in complete:
        scores = [normalised(results.scores(name, env), results.chance[env], BEST[env]) for env in TASKS]
        both = (
            f"{s(np.concatenate(scores)):.2f} ({a:.2f} to {b:.2f})"
            for s in (mean, iqm)
            for a, b in [interval(scores, s)]
        )
        lines.append(f"| {name} | {' | '.join(both)} | {sum(map(len, scores))} |")
    return [*lines, ""]


def published(results: Results) -> list[str]:
    """Table 2, continued: against the published columns."""
    lines = [
        "### Against what was published",
        "",
        *unreached(results),
        "Tianshou's numbers are the largest mean over 10 seeds that any evaluation reached; `best evaluation` is that "
        "measure here, of 10 evaluations in a run. Both choose the luckiest moment; `last` is the evaluation at the "
        "end. "
        "The bar of a PPO is the best published PPO at 1M steps (Swimmer's needs a discount of 0.9999, which "
        "`tuned-swimmer` has); that of another algorithm is Tianshou's number.",
        "",
    ]
    for algo, others in PUBLISHED.items():
        for name in (name for name in MAIN if SETTINGS[name].algo == algo or (algo == "ppo" and name in PPOS)):
            there = [env for env in TASKS if results.of(name, env)]
            if there:
                lines += [f"| {name} | last | best evaluation | bar | reached | {' | '.join(others)} |"]
                lines += ["|---|---|---|---|---|" + "---|" * len(others)]
            for env in there:
                bar, best = (BEST if algo == "ppo" else others["Tianshou"])[env], best_evaluation(results.of(name, env))
                verdict = "yes" if best >= bar else f"**no** ({number(best - bar)})"
                theirs = " | ".join(number(c[env]) if env in c else "–" for c in others.values())
                last = told(np.array([row["eval_mean"] for row in results.of(name, env)]))
                lines.append(f"| {env} | {last} | {number(best)} | {number(bar)} | {verdict} | {theirs} |")
            lines += [""] if there else []
    return lines


def unreached(results: Results) -> list[str]:
    """Where the two presets of PPO stay behind, in a sentence each."""
    lines = list[str]()
    for name in ("tuned", "paper"):
        there = [env for env in TASKS if results.of(name, env)]
        behind = [env for env in there if best_evaluation(results.of(name, env)) < BEST[env]]
        words = ", ".join(
            f"{env} ({number(best_evaluation(results.of(name, env)))} of {number(BEST[env])})" for env in behind
        )
        if there:
            lines += [
                f"`{name}` reaches the best published PPO on {len(there) - len(behind)} of {len(there)} tasks"
                + (f"; not on {words}." if behind else "."),
                "",
            ]
    return lines


def cost(results: Results) -> list[str]:
    """Table 3: steps and seconds."""
    names = [name for name in MAIN if any(results.of(name, env) for env in TASKS)]
    lines = [
        "## 3. Steps and seconds",
        "",
        "Seconds of collecting and learning for the whole run, one process and one thread, evaluations left out: the "
        "median over seeds. Other work ran on the machine at the same time.",
        "",
        f"| task | {' | '.join(names)} | trpo / paper |",
        "|---|" + "---|" * (len(names) + 1),
    ]
    for env in TASKS:
        seconds = {
            name: np.median([row["seconds"] for row in results.of(name, env)])
            for name in names
            if results.of(name, env)
        }
        ratio = f"{seconds['trpo'] / seconds['paper']:.1f}" if {"trpo", "paper"} <= seconds.keys() else "–"
        each = [f"{seconds[name]:.0f}" if name in seconds else "–" for name in names]
        lines.append(f"| {env} | {' | '.join(each)} | {ratio} |")
    lines += ["", "Steps and seconds until the mean over seeds is half of the way from chance to the best"]
    lines += ["published PPO.", "", f"| task | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
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
    return f"{steps[there[0]] / 1000:.0f}k, {seconds[there[0]]:.0f} s" if len(there) else "never"


def where(results: Results) -> list[str]:
    """Machine and versions."""
    lines = list[str]()
    for described in sorted({json.dumps([row["machine"], row["versions"]]) for row in results.rows}):
        machine, versions = json.loads(described)
        lines.append(f"Machine: {machine}. Versions: {', '.join(f'{k} {v}' for k, v in versions.items())}.")
    return lines


def told(values: np.ndarray) -> str:
    if not len(values):
        return "–"
    large = abs(values.mean()) >= LARGE
    spread = f" ± {values.std(ddof=1):,.{0 if large else 1}f}" if len(values) > 1 else ""
    return f"{number(values.mean())}{spread} ({len(values)})"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= LARGE else f"{value:.1f}"
