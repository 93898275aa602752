"""What policies see, remember and obey: does it learn? Trains tasks of each kind, and writes a table.

    python benchmarks/policies.py [--only NAME …] [--seeds 3] [--work runs/policies] [--so-far] [--table]

Each run is resumable: one that was stopped goes on from its last checkpoint, one that is done is not run again. Results
are added to benchmarks/results/policies.json as they come; `--so-far` adds those of stopped runs as they are, and runs
none; `--table` writes policies.md and the pictures from them.
Of the driving, what the first seed learned is filmed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import worlds
from machine import machine, versions

import proximo
from proximo.errors import ProximoError
from proximo.run.folder import read_rows
from proximo.run.loading import opened
from proximo.run.play import record_video
from proximo.run.plot import plot_runs

RESULTS = Path(__file__).parent / "results"
LSTM: dict[str, Any] = dict(memory="lstm", memory_size=64, sequence=32)
FILMED = 450  # steps at most, 15 seconds: under a megabyte
SMALL: dict[str, Any] = dict(envs=16, horizon=128, epochs=10, minibatches=8, lr=1e-3, gamma=0.98, lam=0.9)
SWING: dict[str, Any] = dict(
    envs=8, horizon=512, epochs=10, minibatches=16, lr=1e-3, gamma=0.9, lam=0.95, normalize_reward=True
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One environment, learned with some settings; the bar is the mean return to reach, None for a curve alone."""

    name: str
    env: str | Callable[[], gym.Env]
    steps: int
    bar: float | None
    settings: dict[str, Any] = field(default_factory=dict)
    training: bool = False  # what must reach the bar: the last 100 games of training, not the evaluation
    filmed: bool = False


TASKS = (
    Task("CartPole without velocities, LSTM", worlds.cartpole_without_velocities, 500_000, 450, SMALL | LSTM),
    Task("CartPole without velocities, stack of 4", worlds.cartpole_without_velocities, 500_000, None,
         SMALL | dict(frame_stack=4)),
    Task("CartPole without velocities, no memory", worlds.cartpole_without_velocities, 500_000, None, SMALL),
    Task("Pendulum without velocity, LSTM", worlds.pendulum_without_velocity, 1_000_000, -300,
         SWING | LSTM | dict(eval_episodes=100)),
    Task("Repeat previous (4 ago), LSTM", worlds.RepeatPrevious, 1_000_000, 0.95, SMALL | LSTM | dict(sequence=64)),
    Task("Repeat previous (4 ago), transformer", worlds.RepeatPrevious, 1_000_000, 0.95,
         SMALL | dict(memory="transformer", memory_size=64, memory_window=8, sequence=32, lr=3e-4)),
    Task("Repeat previous (4 ago), no memory: 0.25 at best", worlds.RepeatPrevious, 300_000, None, SMALL),
    Task("Taxi, masked; a forbidden action raises", worlds.strict_taxi, 1_000_000, 7,
         dict(entropy_coef=0.01, eval_episodes=200)),
    Task("MultiDiscrete: four dials", worlds.Dials, 300_000, 0.95, SMALL),
    Task("BipedalWalker-v3", "BipedalWalker-v3", 5_000_000, 280),
    Task("Racetrack-v0", "Racetrack-v0", 300_000, None, filmed=True),
    Task("Dict: a picture and a word, a hand and a place", worlds.Reach, 500_000, 0.8, SMALL | dict(gamma=0.5)),
    Task("Pong-v5", "Pong-v5", 4_000_000, 18, dict(precision="bfloat16", threads=2), training=True),
    Task("Breakout-v5", "Breakout-v5", 3_000_000, None, dict(precision="bfloat16", threads=2)),
    Task("StarpilotEasy-v0", "StarpilotEasy-v0", 1_000_000, None, dict(precision="bfloat16", threads=2)),
)  # fmt: skip
LONG = TASKS[-4:]  # half an hour or more: one seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of names")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/policies"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--so-far", action="store_true")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)  # rather told now than after hours
    chosen = [task for task in TASKS if not args.only or task.name.startswith(tuple(args.only))]
    if args.so_far:
        for seed, task in itertools.product(range(args.seeds), chosen):
            if (out := folder(args.work, task, seed)).exists():
                keep(args.results, result(task, seed, out))
    elif not args.table:
        for seed in range(args.seeds):
            for task in chosen:
                if seed == 0 or task not in LONG:
                    row = trained(task, seed, args.work)
                    keep(args.results, row)
                    print(f"{task.name}, seed {seed}: {row['eval_mean']:.3f} in {row['seconds']:.0f} s", flush=True)
                    if task.filmed and seed == 0:
                        film(folder(args.work, task, seed), args.results / f"policies-{task.name}.mp4")
    write_table(args.results, args.work)


def folder(work: Path, task: Task, seed: int) -> Path:
    return work / f"{''.join(c if c.isalnum() else '-' for c in task.name)}-{seed}"


def trained(task: Task, seed: int, work: Path) -> dict[str, Any]:
    """The result of one run."""
    out, env = folder(work, task, seed), task.env if callable(task.env) else None
    if not (out / "done").exists():
        if (out / "config.json").exists():
            proximo.resume(out, env=env, quiet=True)
        else:
            settings: dict[str, Any] = dict(eval_every=task.steps // 10, seed=seed, threads=1) | task.settings
            proximo.train(task.env, steps=task.steps, out=out, quiet=True, **settings)
        if read_rows(out / "metrics.jsonl")[-1]["step"] < 0.95 * task.steps:  # all but a collection
            raise SystemExit(f"{task.name} was stopped; the same command goes on with it")
        (out / "done").write_text(time.strftime("%F %T"))
    return result(task, seed, out)


def result(task: Task, seed: int, out: Path) -> dict[str, Any]:
    """What a run in a folder came to, at the end or where it was stopped."""
    rows, last = read_rows(out / "metrics.jsonl"), read_rows(out / "eval.jsonl")[-1]
    metrics, preset = rows[-1], json.loads((out / "config.json").read_text())["preset"]
    return {
        "task": task.name,
        "seed": seed,
        "preset": preset,
        "settings": json.loads(json.dumps(task.settings)),
        "first": first_above(rows, task.bar),
        "step": metrics["step"],
        "eval_step": last["step"],
        "eval_mean": last["return_mean"],
        "eval_episodes": last["episodes"],
        "train_return_last_100": metrics["return_mean"],
        "seconds": round(metrics["seconds"], 1),
        "machine": machine(),
        "versions": versions(),
    }


def first_above(rows: list[dict[str, Any]], bar: float | None) -> list[float] | None:
    """Steps and seconds after which the last 100 episodes of training first reached the bar in the mean."""
    there = (row for row in rows if bar is not None and row["return_mean"] is not None and row["return_mean"] >= bar)
    return next(([row["step"], round(row["seconds"], 1)] for row in there), None)


def film(run: Path, video: Path) -> None:
    """The first steps of an episode of a trained policy; where they cannot be filmed, why."""
    try:
        agent, env, settings = opened(run, None, print)
        frames, _ = record_video(agent, env, replace(settings, max_episode_steps=FILMED), video, 1)
        print(f"{video}: {frames} frames", flush=True)
    except ProximoError as error:
        print(f"no video of {run}: {error}", flush=True)


def keep(results: Path, row: dict[str, Any]) -> None:
    """Add or replace one run's result."""
    path = results / "policies.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    rows = [old for old in rows if (old["task"], old["seed"]) != (row["task"], row["seed"])] + [row]
    path.write_text(json.dumps(rows, indent=1) + "\n")


def write_table(results: Path, work: Path) -> None:
    """policies.md, and a learning curve for each task whose runs are at hand."""
    rows = json.loads((results / "policies.json").read_text())
    shown = list[str]()
    lines = [
        "# Policies that see, remember and obey",
        "",
        "Mean return of evaluation episodes (most likely actions) at the end of training, and of the last 100 of",
        "training (actions drawn; of games, whole ones), with the steps and seconds after which those first reached",
        "the bar. Seconds are of collecting and learning; evaluations and checkpoints stand apart. Pong and Breakout",
        "are EnvPool's, whose lives each begin with up to 30 frames of doing nothing. Seconds of all but Pong and",
        "the Dict are no measure: other work ran beside these runs, and some were stopped for it. A task with fewer",
        "than 10 seeds is a pilot.",
        "",
        "    python benchmarks/policies.py",
        "",
        f"{machines(rows)}.",
        "",
        "| task | steps | seeds | to reach | reached | evaluation, each seed | episodes | last 100 of training "
        "| first there | seconds a run (median) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        mine = sorted((row for row in rows if row["task"] == task.name), key=lambda row: row["seed"])
        lines.append(f"| {' | '.join(cells(task, mine))} |")
        runs = [path for row in mine if (path := folder(work, task, row["seed"])).exists()]
        curve = results / f"policies-{folder(work, task, 0).name.removesuffix('-0')}.png"
        if runs:
            plot_runs(runs, curve)
        if curve.exists():
            shown += [f"![{task.name}]({curve.name})", ""]
        if (results / f"policies-{task.name}.mp4").exists():
            shown += [f"[{task.name}, filmed](policies-{task.name}.mp4)", ""]
    described = {", ".join(f"{k} {v}" for k, v in row["versions"].items()) for row in rows}
    parts = [lines, settings_of(rows), ["## Curves"] if shown else [], shown, sorted(described)]
    (results / "policies.md").write_text("\n\n".join("\n".join(part).rstrip() for part in parts if part) + "\n")


def settings_of(rows: list[dict[str, Any]]) -> list[str]:
    """What each task was learned with."""
    lines = ["## Settings", "", "| task | preset | over it |", "|---|---|---|"]
    for task in TASKS:
        mine = [row for row in rows if row["task"] == task.name]
        over = ", ".join(f"{name} {value}" for name, value in task.settings.items()) or "–"
        lines.append(f"| {task.name} | {mine[-1].get('preset', '–') if mine else 'not run'} | {over} |")
    return lines


def machines(rows: list[dict[str, Any]]) -> str:
    """Where the tasks were run."""
    told = dict[str, list[str]]()
    for row in rows:
        told.setdefault(row["machine"], []).append(row["task"])
    if len(told) == 1:
        return f"Machine: {next(iter(told))}"
    return "Machines: " + "; ".join(f"{machine} ({', '.join(dict.fromkeys(names))})" for machine, names in told.items())


def cells(task: Task, rows: list[dict[str, Any]]) -> list[str]:
    """A task's line: its rows are those of its seeds."""
    bar = "–" if task.bar is None else f"≥ {task.bar:g}{' in training' if task.training else ''}"
    if not rows:
        return [task.name, f"{task.steps:,}", "–", bar, "not run", *["–"] * 5]
    numbers = {name: [row[name] for row in rows] for name in ("eval_mean", "train_return_last_100")}
    evaluated, drawn = (", ".join(f"{x:.4g}" for x in column) for column in numbers.values())
    counted = numbers["train_return_last_100" if task.training else "eval_mean"]
    short = [x for x in counted if task.bar is not None and x < task.bar]
    most = f"{len(rows) - len(short)} of {len(rows)}; " if len(short) < len(rows) else ""
    missed = f"{most}no: {', '.join(f'{x:.4g}' for x in short)}"
    reached = "–" if task.bar is None else missed if short else "yes"
    episodes = ", ".join(map(str, sorted({row["eval_episodes"] for row in rows})))
    seconds = np.median([row["seconds"] for row in rows])
    seeds = ", ".join(str(row["seed"]) for row in rows)
    times = [f"{first[0]:,.0f} in {first[1]:,.0f} s" if (first := row.get("first")) else "–" for row in rows]
    told = [", ".join(dict.fromkeys(times)) if set(times) == {"–"} else ", ".join(times), f"{seconds:,.0f}"]
    steps = f"{rows[0]['step']:,}" + (f" of {task.steps:,} so far" if rows[0]["step"] < 0.95 * task.steps else "")
    return [task.name, steps, seeds, bar, reached, evaluated, episodes, drawn, *told]


if __name__ == "__main__":
    main()
