"""The PPO paper's tables: seven MuJoCo tasks, 1M steps, PPO and its family, against what was published.

    python benchmarks/mujoco.py [--only paper trpo Hopper-v5 …] [--jobs 1] [--work runs/mujoco] [--budget-hours H]
    python benchmarks/mujoco.py --table

The runs are trained in the order of their worth (mujoco_plan.py), each in a process of its own, as a user would train
it, and each result is added to benchmarks/results/mujoco.json as it comes. A benchmark that was stopped goes on where
it was, in the middle of a run too; a run that is done is not run again, unless its settings changed. `--table` writes
mujoco.md and the pictures from the results, without training. `--list` shows what is to be done.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from machine import commit, machine, versions
from mujoco_plan import EVERY, SETTINGS, TASKS, Job, impossible, jobs

from proximo.run.folder import read_rows

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "mujoco.json"
POINTS = 100  # of a learning curve that is kept
NICE = 5
ALWAYS = ("--threads", "1", "--backend", "sync", "--compile", "on", "--eval-every", f"{EVERY}", "--eval-episodes", "20")
Results = dict[str, Any]  # "random": task -> score; "runs": rows
lock = threading.Lock()  # of the results' file
stopping = threading.Event()  # somebody asked to stop
training: set[subprocess.Popen[str]] = set()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=[*SETTINGS, *TASKS], default=[], metavar="SETTING|TASK")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/mujoco"))
    parser.add_argument("--budget-hours", type=float, default=float("inf"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    if not args.table:
        there = read(args.results)["runs"]
        todo = [job for job in jobs(args.only) if possible(job) and not done(there, job)]
        if args.list:
            print(*(job.name for job in todo), f"{len(todo)} runs", sep="\n")
            return
        os.nice(NICE)
        know_random(args.results)
        train_all(todo, args.work.resolve(), args.results, args.jobs, args.budget_hours)
    from mujoco_table import write_table  # draws, which a run that trains need not wait for

    write_table(args.results)


def possible(job: Job) -> bool:
    """Whether it can be run; says why not, once a setting."""
    why = impossible(job)
    if why is not None and job.seed == job.setting.first and job.env == job.setting.tasks[0]:
        print(f"{job.setting.name} is passed over: {why}", flush=True)
    return why is None


def train_all(todo: list[Job], work: Path, results: Path, at_a_time: int, hours: float) -> None:
    """Train them in order, so many at a time; none is begun after so many hours.

    Ctrl-C, or a request to terminate, is passed on to those that train, which save where they are.
    """
    end = time.monotonic() + hours * 3600
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)

    def one(job: Job) -> None:
        if time.monotonic() < end and not stopping.is_set() and (row := trained(job, work)) is not None:
            keep(results, row)
            print(
                f"{time.strftime('%H:%M:%S')} {job.name}: {row['last_100']:.1f} (evaluation {row['eval_mean']:.1f}) "
                f"in {row['seconds']:.0f} s",
                flush=True,
            )

    with ThreadPoolExecutor(at_a_time) as pool:
        list(pool.map(one, todo))


def stop(*_: object) -> None:
    stopping.set()
    for process in list(training):
        process.terminate()


def trained(job: Job, work: Path) -> dict[str, Any] | None:
    """The result of one run; None where it failed, which is said."""
    out = work / f"{job.name}-{job.setting.key(job.env)}"
    train, made_at = command(job, out), commit()  # before it trains: others may come meanwhile
    if not finished(out):
        words = ["resume", str(out), "--quiet"] if (out / "config.json").exists() else train
        code, said = proximo(words)
        if code or not finished(out):
            print(f"{job.name} {'was stopped' if stopping.is_set() else 'failed'}: {said}", flush=True)
            return None
    return result(job, out, train) | {"commit": made_at, "resumed": resumed(out)}


def proximo(words: list[str]) -> tuple[int, str]:
    """Run the command; its exit code, and the last line that it said."""
    pipe, asked = subprocess.PIPE, [sys.executable, "-m", "proximo", *words]
    # Not from this folder (see mujoco_random.py), and in a session of its own, so that Ctrl-C comes from here alone.
    cwd = HERE.parent
    with subprocess.Popen(asked, stdout=pipe, stderr=pipe, text=True, cwd=cwd, start_new_session=True) as process:
        training.add(process)
        out, err = process.communicate()
        training.remove(process)
    return process.returncode, ((err or out).strip().splitlines() or ["it said nothing"])[-1]


def command(job: Job, out: Path) -> list[str]:
    """The words after `proximo` that train it."""
    words = ["train", job.env, "--algo", job.setting.algo_on(job.env), "--preset", job.setting.preset_on(job.env)]
    words += ["--steps", str(job.setting.numbers(job.env)["steps"]), "--seed", str(job.seed)]
    for name, value in job.setting.asked.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return [*words, *ALWAYS, "--out", str(out), "--quiet"]


def result(job: Job, out: Path, train: list[str]) -> dict[str, Any]:
    """What is kept of a finished run."""
    metrics, evals = read_rows(out / "metrics.jsonl"), read_rows(out / "eval.jsonl")
    ended = [row for row in metrics if row["return_mean"] is not None]
    some = [ended[i] for i in np.unique(np.linspace(0, len(ended) - 1, POINTS).round().astype(int))]
    last, config = metrics[-1], json.loads((out / "config.json").read_text())
    words = [word for word in train if word not in ("--out", str(out), "--quiet")]
    return {
        "setting": job.setting.name,
        "env": job.env,
        "seed": job.seed,
        "key": job.setting.key(job.env),
        "last_100": last["return_mean"],  # the paper's score
        "episodes": last["episodes"],
        "eval_mean": evals[-1]["return_mean"],
        "eval_std": evals[-1]["return_std"],
        "eval_episodes": evals[-1]["episodes"],
        "steps": last["step"],
        "seconds": round(last["seconds"], 1),
        "steps_per_second": round(float(np.median([row["steps_per_second"] for row in metrics]))),
        "curve": [[row["step"], round(row["seconds"], 1), round(row["return_mean"], 2)] for row in some],
        "evals": [[row["step"], round(row["return_mean"], 2)] for row in evals],
        "command": " ".join(["proximo", *words]),
        "config": {name: config[name] for name in ("run", "algorithm", "network")},
        "machine": machine(),
        "versions": versions(),
    }


def resumed(out: Path) -> bool:
    """Whether it was begun more than once: every process that trains a run begins a file of events."""
    return len(list(out.glob("events.out.tfevents.*"))) > 1


def finished(out: Path) -> bool:
    """A run is done when no whole rollout fits any more and its final evaluation is written."""
    rows, evals = read_rows(out / "metrics.jsonl"), read_rows(out / "eval.jsonl")
    if not rows or not evals:
        return False
    config = json.loads((out / "config.json").read_text())
    rollout = config["run"]["envs"] * config["algorithm"]["horizon"]
    return rows[-1]["step"] + rollout > config["run"]["steps"] and evals[-1]["step"] == rows[-1]["step"]


def know_random(path: Path) -> None:
    """Measure what chance scores on each task, once."""
    for env in TASKS:
        if env not in read(path)["random"]:
            script = [sys.executable, "-P", str(HERE / "mujoco_random.py"), env]
            score = json.loads(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
            print(f"chance scores {score['mean']:.1f} on {env}", flush=True)
            with lock:
                results = read(path)
                results["random"][env] = score
                write(path, results)


def done(rows: list[dict[str, Any]], job: Job) -> bool:
    """Whether this run's result is among them, of the settings as they are now."""
    wanted = job.setting.name, job.env, job.seed
    return any((row["setting"], row["env"], row["seed"]) == wanted and job.setting.trained(row) for row in rows)


def keep(path: Path, row: dict[str, Any]) -> None:
    """Add or replace one run's result."""
    place = ("setting", "env", "seed")
    with lock:
        results = read(path)
        results["runs"] = [old for old in results["runs"] if any(old[name] != row[name] for name in place)] + [row]
        results["runs"].sort(key=lambda old: (list(SETTINGS).index(old["setting"]), old["env"], old["seed"]))
        write(path, results)


def read(path: Path) -> Results:
    return json.loads(path.read_text()) if path.exists() else {"random": {}, "runs": []}


def write(path: Path, results: Results) -> None:
    """One line a run; the file is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = ",\n".join(json.dumps(row) for row in results["runs"])
    text = f'{{"random": {json.dumps(results["random"])},\n"runs": [\n{runs}\n]}}\n'
    aside = path.with_suffix(".json.new")
    aside.write_text(text)
    aside.replace(path)


if __name__ == "__main__":
    main()
