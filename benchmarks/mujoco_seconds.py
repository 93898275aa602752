"""What do the algorithms of benchmarks/mujoco.py cost? Seconds of their steps, taken in turns.

    python benchmarks/mujoco_seconds.py [--tasks HalfCheetah-v5 …] [--rounds 8] [--steps 4096] [--results DIR]

In every round each algorithm takes so many steps, the first of them another one each time; so a round's seconds of two
algorithms are a pair, and what else the machine does meets all. mujoco-seconds.json is written, which
`python benchmarks/mujoco.py --table` makes a table of.
"""

from __future__ import annotations

import argparse
import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from machine import commit, machine, versions
from mujoco_cost import AGAINST, BESIDE
from mujoco_plan import SETTINGS, STEPS, TASKS, Setting
from turns import Runner, runner

NAMES = (AGAINST, "tuned", "penalty", "trpo", "natural", "a2c")
AS_THERE: dict[str, Any] = dict(threads=1, backend="sync", compile="on")  # as mujoco.py trains


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, metavar="TASK")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4096, help="of an algorithm's turn")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    asked = f"--tasks {' '.join(args.tasks)} --rounds {args.rounds} --steps {args.steps}"
    told = {"command": f"python benchmarks/mujoco_seconds.py {asked}", "commit": commit(), "machine": machine()}
    told |= {"versions": versions(), "load_before": round(os.getloadavg()[0], 2)}
    told |= {"rounds": args.rounds, "steps": args.steps}
    told["tasks"] = [measured(env, args.rounds, args.steps) for env in args.tasks]
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / BESIDE).write_text(json.dumps(told, indent=1) + "\n")
    for task in told["tasks"]:
        print(task["env"], *(f"{name} {task['seconds'][name]:.0f} s" for name in NAMES))


def measured(env: str, rounds: int, steps: int) -> dict[str, Any]:
    """One task: seconds for STEPS steps of each algorithm, round by round."""
    with ExitStack() as stack:
        runners = {name: stack.enter_context(runner(*asked_of(SETTINGS[name], env))) for name in NAMES}
        return {"env": env, **summed(in_turns(runners, rounds, steps))}


def asked_of(setting: Setting, env: str) -> tuple[str, str, str, dict[str, Any]]:
    """What `turns.runner` takes to make a run of a setting."""
    return env, setting.algo_on(env), setting.preset_on(env), setting.asked | AS_THERE | {"steps": STEPS}


def in_turns(runners: dict[str, Runner], rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds for STEPS steps of each runner, round by round, after a turn of each that is not counted: it compiles."""
    names = list(runners)
    for each in runners.values():
        each.turn(steps)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(STEPS * runners[name].turn(steps))
    return taken


def summed(taken: dict[str, list[float]]) -> dict[str, Any]:
    """Medians of the rounds' seconds and of their ratios to those of `paper`, with the smallest and the largest."""
    ratios = {name: np.array(taken[name]) / np.array(taken[AGAINST]) for name in taken}
    return {
        "seconds": {name: float(np.median(seconds)) for name, seconds in taken.items()},
        "ratio": {name: [float(f(x)) for f in (np.median, np.min, np.max)] for name, x in ratios.items()},
        "rounds": {name: [round(second, 2) for second in seconds] for name, seconds in taken.items()},
    }


if __name__ == "__main__":
    main()
