"""What does remembering cost? PPO without memory against recurrent PPO, from the first step to the last gradient.

    python benchmarks/recurrent.py [--rounds 7] [--seconds 5] [--envs ID …] [--only lstm …] [--compile on off]

Each memory learns CartPole, whose steps cost next to nothing, and HalfCheetah, with the settings of
benchmarks/policies.py, compiled and not, in a run of its own. A round gives every run of an environment so many seconds
of whole cycles (collect, learn, log), in an order that rotates from round to round; a ratio is that of two runs in the
same round, so that what else the machine does meets both. recurrent.json and recurrent.md say what the ratios were.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine, versions
from policies import SMALL
from speed import rotated
from turns import Runner, runner

from proximo.compiler import compiling

LIMIT = 3.0  # times the seconds of a step without memory
ENVS = {"CartPole-v1": "discrete", "HalfCheetah-v5": "continuous"}  # and their presets
REMEMBERING: dict[str, Any] = dict(memory_size=64, sequence=16)  # the default length
MEMORIES = ("lstm", "gru", "transformer")
WARM = 3  # cycles that are not counted: the first compile
Key = tuple[str, str, str]  # environment, memory, and whether it is compiled: "on" or "off"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a run in a round")
    parser.add_argument("--envs", nargs="*", choices=ENVS, default=list(ENVS))
    parser.add_argument("--only", nargs="*", choices=MEMORIES, default=list(MEMORIES))
    parser.add_argument("--compile", nargs="*", choices=("on", "off"), default=["on", "off"])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    command = f"python benchmarks/recurrent.py --rounds {args.rounds} --seconds {args.seconds:g}"
    command += "" if args.envs == list(ENVS) else f" --envs {' '.join(args.envs)}"
    command += "" if args.only == list(MEMORIES) else f" --only {' '.join(args.only)}"
    command += "" if args.compile == ["on", "off"] else f" --compile {' '.join(args.compile)}"
    told: dict[str, Any] = {"command": command, "machine": machine(), "versions": versions()}
    told["load_before"] = round(os.getloadavg()[0], 2)
    memories, rates = ("none", *args.only), dict[Key, list[float]]()
    for env, how in itertools.product(args.envs, args.compile):
        rates |= measured([(env, memory, how) for memory in memories], args)
    told["rows"] = [row(key, rates) for key in rates]
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "recurrent.json").write_text(json.dumps(told, indent=1) + "\n")
    (args.results / "recurrent.md").write_text(table(told))
    print((args.results / "recurrent.md").read_text())


def measured(keys: list[Key], args: argparse.Namespace) -> dict[Key, list[float]]:
    """Live steps a second of every run, round by round."""
    rates: dict[Key, list[float]] = {key: [] for key in keys}
    with ExitStack() as stack:
        runs = {key: stack.enter_context(runner(key[0], "ppo", ENVS[key[0]], settings(*key[1:]))) for key in keys}
        for key in keys:
            with compiling(key[-1] == "on"):
                first, *_ = [runs[key].cycle() for _ in range(WARM)]
            print(f"{', '.join(key)}: the first cycle took {first:.1f} s", flush=True)
        for number in range(args.rounds):
            for key in rotated(keys, number):
                with compiling(key[-1] == "on"):
                    rates[key].append(rate(runs[key], args.seconds))
                print(f"round {number}: {', '.join(key)}: {rates[key][-1]:,.0f} steps/s", flush=True)
    return rates


def settings(memory: str, compile: str) -> dict[str, Any]:
    remembering = {} if memory == "none" else REMEMBERING | dict(memory=memory)
    return SMALL | remembering | dict(compile=compile, threads=1, steps=10**9, checkpoint_every=10**9)


def rate(run: Runner, seconds: float) -> float:
    """Steps a second, over the whole cycles that fill so many seconds."""
    first, spent = run.run.step, 0.0
    while spent < seconds:
        spent += run.cycle()
    return (run.run.step - first) / spent


def row(key: Key, rates: dict[Key, list[float]]) -> dict[str, Any]:
    """What was measured of one run, and how many times the time of the run without memory a step takes."""
    env, memory, compile = key
    ratios = np.array(rates[env, "none", compile]) / np.array(rates[key])
    return {
        "env": env,
        "memory": memory,
        "compile": compile,
        "steps_per_second": [round(rate, 1) for rate in rates[key]],
        "ratios": [round(float(ratio), 3) for ratio in ratios],
    }


def table(told: dict[str, Any]) -> str:
    """recurrent.md."""
    rounds = len(told["rows"][0]["ratios"])
    lines = [
        "# What remembering costs",
        "",
        f"PPO, {SMALL['envs']} lanes × {SMALL['horizon']} steps, {SMALL['epochs']} epochs × "
        f"{SMALL['minibatches']} minibatches, one thread; memories of {REMEMBERING['memory_size']}",
        f"units, learned from in sequences of {REMEMBERING['sequence']} steps. Whole cycles: collecting, learning,",
        "logging.",
        f"steps/s: median [least–most] of {rounds} rounds. times: the time of a step, as a multiple of that without",
        "memory in the same round, median [least–most].",
        f"At most {LIMIT:g}× was asked for. Seed 0: a pilot.",
        "",
        f"    {told['command']}",
        "",
        f"Machine: {told['machine']}, load before {told['load_before']:.1f}. "
        f"{', '.join(f'{name} {number}' for name, number in told['versions'].items())}.",
        "",
        f"| environment | compiled | memory | steps/s | times | at most {LIMIT:g}× |",
        "|---|---|---|---|---|---|",
    ]
    for row in told["rows"]:
        cells = [row["env"], "yes" if row["compile"] == "on" else "no", row["memory"]]
        cells.append(spread(row["steps_per_second"], ",.0f"))
        if row["memory"] == "none":
            cells += ["1", "–"]
        else:
            cells += [spread(row["ratios"], ".2f"), "yes" if np.median(row["ratios"]) <= LIMIT else "no"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float], form: str) -> str:
    """Median [least–most]."""
    return f"{np.median(values):{form}} [{min(values):{form}}–{max(values):{form}}]"


if __name__ == "__main__":
    main()
