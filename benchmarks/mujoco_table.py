"""The page of benchmarks/mujoco.py, from its results: mujoco.md."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mujoco_cost import Clock, cost
from mujoco_pictures import draw
from mujoco_plan import FASTEST, SETTINGS, STEPS, TASKS, Setting
from mujoco_published import ABLATION, BEST, BEST_COLUMN, KINDS, LABELS
from mujoco_results import Results, ablation_scores, number, told
from mujoco_verdicts import published
from scores import COVERAGE, FEWEST, Scores, Statistic, even, interval, iqm, mean, normalised

MAIN = ("tuned", "paper", "penalty", "trpo", "a2c", "natural")  # of the second table and the third
ALGORITHMS = {
    "recompute": "PPO-Clip, advantages estimated anew before every pass",
    "ppo": "PPO-Clip",
    "penalty": "PPO-Penalty, adaptive KL",
    "trpo": "TRPO",
    "a2c": "A2C",
    "natural": "natural policy gradient",
}
PILOT = 10  # seeds below which a number is a pilot


def write_table(path: Path) -> None:
    """mujoco.md and the pictures, beside the results."""
    if not path.exists() or not (results := Results(path)).rows:
        return
    clock = Clock(path.parent)
    path.with_suffix(".md").write_text(page(results, clock, draw(results, clock, path.parent)))


def page(results: Results, clock: Clock, pictures: list[tuple[str, str]]) -> str:
    """mujoco.md, with the seconds of mujoco_seconds.py where there are some."""
    lines = ["# MuJoCo: PPO and its family against what was published", "", *about(results)]
    lines += [*ablation(results), *family(results), *published(results, MAIN), *cost(results, MAIN, clock)]
    lines += ["## Pictures", "", *(f"![{name}]({file})\n" for name, file in pictures), *where(results)]
    return "\n".join(lines).rstrip() + "\n"


def about(results: Results) -> list[str]:
    seeds = [len(results.of(name, env)) for name in SETTINGS for env in TASKS if results.of(name, env)]
    steps = f"{min(row['steps'] for row in results.rows):,} to {max(row['steps'] for row in results.rows):,}"
    few = f"{min(seeds)} to {max(seeds)}" if min(seeds) < max(seeds) else f"{max(seeds)}"
    which = "all" if max(seeds) < PILOT else "some"
    pilot = f" Fewer than {PILOT} seeds are a pilot, which {which} of these are." if min(seeds) < PILOT else ""
    return [
        f"{len(results.rows)} runs of {STEPS:,} steps ({steps} were taken: whole collections alone), v5 tasks, {few} "
        f"seeds (0, 1, 2, …; of `tuned` 2, 3, …) a number.{pilot}",
        "",
        "A score is the mean return of a run's last 100 training episodes, actions drawn (the PPO paper's measure). "
        "Chance is what evenly drawn actions score (mujoco_random.py). The commands:",
        "",
        "    python benchmarks/mujoco.py            # trains what is missing, resumes what was stopped",
        "    python benchmarks/mujoco.py --table    # this page and its pictures",
        "    python benchmarks/mujoco_seconds.py    # what the algorithms cost, side by side",
        "",
        "An interval is a percentile bootstrap's, 95 %, stratified by task; there is none (–) where a task has fewer "
        f"than {FEWEST} runs. Of few runs these intervals cover less than they say: of normal scores on seven tasks "
        f"{100 * COVERAGE[3, 7]:.0f} % with 3 runs a task and {100 * COVERAGE[5, 7]:.0f} % with 5, on three tasks "
        f"{100 * COVERAGE[3, 3]:.0f} % and {100 * COVERAGE[5, 3]:.0f} % (measured by tests/test_scores.py).",
        "",
        *columns(results),
    ]


def columns(results: Results) -> list[str]:
    """What a column's name stands for."""
    lines = ["| column | algorithm | `--algo` | preset | over it |", "|---|---|---|---|---|"]
    notes = list[str]()
    for setting in (SETTINGS[name] for name in MAIN):
        usual = next(env for env in TASKS if env not in setting.presets)
        presets = [setting.chosen(usual).name, *(f"{name} ({env})" for env, name in setting.presets.items())]
        over = ", ".join(f"{name} {value}" for name, value in setting.asked.items()) or "–"
        cells = [setting.name, ALGORITHMS[setting.algo], setting.algo, ", ".join(presets), over]
        lines.append(f"| {' | '.join(cells)} |")
        for env, name in setting.presets.items():
            algo = f" with `--algo {setting.algo_on(env)}`" if setting.algo_on(env) != setting.algo else ""
            told_apart = f"On {env} `{setting.name}` is `{name}`{algo}: {differences(setting, env, usual)}."
            notes.append(
                f"{told_apart} So what is said of `{setting.name}` on all tasks together is not of one setting."
            )
    old = Counter(row["setting"] for row in results.rows if not SETTINGS[row["setting"]].trained(row))
    if old:
        named = ", ".join(f"`{name}` ({count} runs)" for name, count in old.items())
        notes.append(f"Trained with numbers that have changed since, and yet to be trained anew: {named}.")
    return [*lines, "", *notes, "The settings of every run are in mujoco.json.", ""]


def differences(setting: Setting, env: str, usual: str) -> str:
    """What it has on one task that it has not on another."""
    here, there = (every_number(setting, each) for each in (env, usual))
    shared = (name for name in here if name in there and here[name] != there[name])
    return ", ".join(f"{name} {here[name]} for {there[name]}" for name in shared)


def every_number(setting: Setting, env: str) -> dict[str, Any]:
    config = setting.config(env)
    return vars(config.run) | vars(config.algorithm) | vars(config.network)


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
        "compared settings 1; the mean of the tasks' means over seeds, with its interval. On three tasks those of all "
        "rows are compared, on all seven those of the rows that have them, so each column has a scale of its own. The "
        "paper's are over all seven tasks in their first versions, and relative to the best of its own runs: orders "
        "compare, levels hardly. All seven are run with the best of each kind, the paper's and those here.",
        "",
        f"| surrogate | {short} | runs | all seven tasks | runs | the paper, all seven |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        few = cells(results, name, FASTEST, names)
        many = cells(results, name, TASKS, everywhere) if name in everywhere else ("–", "–")
        lines.append(f"| {LABELS[name]} | {few[0]} | {few[1]} | {many[0]} | {many[1]} | {ABLATION[name]:.2f} |")
    return [*lines, "", *leaders(results, names), ""]


def leaders(results: Results, names: list[str]) -> list[str]:
    """The best of each kind on the three tasks, and whether it can be told from the one that the paper found best."""
    said = list[str]()
    for kind in (kind for kind in KINDS if set(kind) <= set(names)):
        found = {name: ablation_scores(results, name, FASTEST, names) for name in kind}
        ours, theirs = max(kind, key=lambda name: mean(found[name])), max(kind, key=ABLATION.__getitem__)
        if ours == theirs:
            said.append(f"{LABELS[ours]}, as in the paper")
            continue
        low, high = interval(found[ours], mean), interval(found[theirs], mean)
        apart = low is not None and high is not None and low[0] > high[1]
        told = "apart by their intervals" if apart else "not told apart by so few seeds"
        said.append(f"{LABELS[ours]} ({mean(found[ours]):.2f}; the paper's {mean(found[theirs]):.2f}, {told})")
    return [f"The best of each kind here, on the three tasks: {'; '.join(said)}."] if said else []


def cells(results: Results, name: str, tasks: Iterable[str], among: list[str]) -> tuple[str, str]:
    scores = ablation_scores(results, name, tasks, among)
    return ranged(scores, mean), runs_of(scores)


def ranged(scores: Scores, statistic: Statistic) -> str:
    """A statistic and its interval."""
    found = interval(scores, statistic)
    return f"{statistic(scores):.2f} ({'–' if found is None else f'{found[0]:.2f} to {found[1]:.2f}'})"


def runs_of(scores: Scores) -> str:
    return str(sum(map(len, scores)))


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
        lines += [
            "",
            f"All tasks together, where chance is 0 and {BEST_COLUMN} 1 (Agarwal et al. 2021): the mean of the "
            "tasks' means, of all runs, and the interquartile mean, of the first seeds of every task, as many as all "
            "tasks have. This scale sets scores of drawn actions, over the last 100 training episodes, against "
            "Tianshou's evaluations of most likely actions: it tells settings apart, and is no share of Tianshou's.",
            "",
            "| | mean | runs | interquartile mean | runs |",
            "|---|---|---|---|---|",
        ]
    for name in complete:
        scores = [normalised(results.scores(name, env), results.chance[env], BEST[env]) for env in TASKS]
        same = even(scores)
        lines.append(f"| {name} | {ranged(scores, mean)} | {runs_of(scores)} | {ranged(same, iqm)} | {runs_of(same)} |")
    return [*lines, ""]


def where(results: Results) -> list[str]:
    """Machine and versions, commits, and what was interrupted."""
    lines = list[str]()
    for described in sorted({json.dumps([row["machine"], row["versions"]]) for row in results.rows}):
        machine, versions = json.loads(described)
        lines.append(f"Machine: {machine}. Versions: {', '.join(f'{k} {v}' for k, v in versions.items())}.")
    commits = Counter(row.get("commit") or "not written down" for row in results.rows)
    resumed = Counter(row.get("resumed") for row in results.rows)
    unknown = f"; of {resumed[None]} it was not written down" if resumed[None] else ""
    return [
        *lines,
        "",
        f"Commits: {', '.join(f'{name} ({count} runs)' for name, count in commits.items())}.",
        "",
        f"Resumed after an interruption: {resumed[True]} of {len(results.rows)} runs{unknown}. A run that was killed "
        "and resumed by the same code is the one that was never stopped, bit for bit; one that was asked to stop is as "
        "good as that, but not the same ([Exact resume](../../docs/architecture.md#steps-updates-checkpoints)).",
    ]
