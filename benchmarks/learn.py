"""Does it learn? Trains every task with its preset and several seeds, and writes the table that the README quotes.

    python benchmarks/learn.py [--only CartPole-v1 …] [--jobs 1] [--work runs/learn] [--table]

Each run is resumable: a run that was stopped goes on from its last checkpoint, one that is done is not run again.
The runs lie in --work; the numbers in benchmarks/results/learn.json; `--table` writes learn.md and the pictures from
them without training.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine, versions

from proximo.run.folder import read_rows
from proximo.run.plot import plot_runs

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Task:
    env: str
    steps: int
    seeds: int
    bar: float  # the mean evaluation return to reach
    rule: str  # what must reach it
    flags: tuple[str, ...] = ()  # over the preset


TASKS = (
    Task("CartPole-v1", 100_000, 10, 475, "at least 9 of 10 seeds"),
    Task("Acrobot-v1", 1_000_000, 5, -100, "the mean of 5 seeds"),
    Task("LunarLander-v3", 1_000_000, 5, 200, "the mean of 5 seeds"),
    Task("Pendulum-v1", 300_000, 5, -250, "the mean of 5 seeds"),
    Task(
        "HalfCheetah-v5", 1_000_000, 10, 1450, "the mean of 10 seeds", ("--max-grad-norm", "0.5", "--normalize-reward")
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[task.env for task in TASKS])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/learn"))
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    tasks = [task for task in TASKS if task.env in args.only]
    if not args.table:
        todo = [(task, seed) for task in tasks for seed in range(task.seeds)]
        with ThreadPoolExecutor(args.jobs) as pool:
            for row in pool.map(lambda job: trained(job[0], job[1], args.work), todo):
                keep(row)
                print(
                    f"{row['env']} seed {row['seed']}: {row['eval_mean']:.1f} after {row['step']:,} steps", flush=True
                )
    write_table(args.work)


def folder(work: Path, env: str, seed: int) -> Path:
    return work / f"{env}-{seed}"


def trained(task: Task, seed: int, work: Path) -> dict[str, Any]:
    """The result of one run, trained in a process of its own as a user would train it."""
    out = folder(work, task.env, seed)
    proximo = [sys.executable, "-m", "proximo"]
    if not finished(out):
        if (out / "config.json").exists():
            command = [*proximo, "resume", str(out), "--quiet"]
        else:
            command = [*proximo, "train", task.env, "--steps", str(task.steps), "--seed", str(seed), "--out", str(out)]
            command += ["--eval-every", str(task.steps // 10), "--quiet", *task.flags]
        subprocess.run(command, check=True)
    metrics, last = read_rows(out / "metrics.jsonl")[-1], read_rows(out / "eval.jsonl")[-1]
    config = json.loads((out / "config.json").read_text())
    return {
        "env": task.env,
        "seed": seed,
        "step": last["step"],
        "eval_mean": last["return_mean"],
        "eval_std": last["return_std"],
        "eval_episodes": last["episodes"],
        "train_return_last_100": metrics["return_mean"],
        "seconds": round(metrics["seconds"], 1),
        "preset": config["preset"],
        "backend": config["run"]["backend"],
        "machine": machine(),
        "versions": versions(),
    }


def finished(out: Path) -> bool:
    """A run is done when its last metrics leave no room for another rollout and its final evaluation is written."""
    rows, evals = read_rows(out / "metrics.jsonl"), read_rows(out / "eval.jsonl")
    if not rows or not evals:
        return False
    config = json.loads((out / "config.json").read_text())
    rollout = config["run"]["envs"] * config["algorithm"]["horizon"]
    return rows[-1]["step"] + rollout > config["run"]["steps"] and evals[-1]["step"] == rows[-1]["step"]


def keep(row: dict[str, Any]) -> None:
    """Add or replace one run's result."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "learn.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    rows = [old for old in rows if (old["env"], old["seed"]) != (row["env"], row["seed"])] + [row]
    rows.sort(key=lambda r: (r["env"], r["seed"]))
    path.write_text(json.dumps(rows, indent=1) + "\n")


def write_table(work: Path) -> None:
    """learn.md, and a learning curve for each task whose runs are at hand."""
    rows = json.loads((RESULTS / "learn.json").read_text())
    lines = [
        "# Learning",
        "",
        "Mean return over 20 evaluation episodes (deterministic actions) at the end of training, each seed shown.",
        "A task with fewer than 10 seeds is a pilot.",
        "",
        "| task | steps | seeds | bar | reached | mean of seeds | each seed | seconds a run (median) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        mine = [row for row in rows if row["env"] == task.env]
        if not mine:
            continue
        means = np.array([row["eval_mean"] for row in mine])
        passed = f"{(means >= task.bar).sum()} of {len(means)} seeds"
        pilot = "" if len(mine) >= 10 else " (pilot)"
        each = ", ".join(f"{m:.1f}" for m in means)
        seconds = np.median([row["seconds"] for row in mine])
        lines.append(
            f"| {task.env}{pilot} | {task.steps:,} | {len(mine)} | ≥ {task.bar:g}, {task.rule} | {passed} "
            f"| {means.mean():.1f} | {each} | {seconds:.0f} |"
        )
        runs = [path for row in mine if (path := folder(work, task.env, row["seed"])).exists()]
        if runs:
            plot_runs(runs, RESULTS / f"learn-{task.env}.png")
    lines += [
        "",
        "Seeds are 0, 1, 2, …; settings are the preset that fits the environment. The command:",
        "",
    ]
    lines += ["    python benchmarks/learn.py", ""]
    for described in sorted({json.dumps([row["machine"], row["versions"]]) for row in rows}):
        where, with_what = json.loads(described)
        lines.append(f"Machine: {where}. Versions: {', '.join(f'{k} {v}' for k, v in with_what.items())}.")
    (RESULTS / "learn.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
