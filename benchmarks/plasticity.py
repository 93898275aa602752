"""Does a network that is asked something else, again and again, go on learning? What stops it, and what helps?

    python benchmarks/plasticity.py [--only default relu …] [--seeds 5] [--jobs 1] [--results benchmarks/results]
    python benchmarks/plasticity.py --table

The task is 64 random patterns, each with one of four actions that is worth 1; after every 49,152 steps all rewards
change: each pattern's right action is drawn anew, 30 times in a run. What is seen never changes, and every phase is as
hard as the first. A run that is done is not run again, unless its settings changed; results are kept in plasticity.json
as they come. `--table` writes plasticity.md and the picture from them, without training.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from machine import machine, versions
from torch import Tensor, nn

import proximo
from proximo.run.files import replace_durably
from proximo.run.folder import read_rows
from proximo.sources.tensors import Transition

PATTERNS, SIZE, ACTIONS, LANES = 64, 8, 4, 64
LOOKS = 8  # of a phase
COMMON: dict[str, Any] = dict(
    envs=LANES, horizon=16, epochs=4, minibatches=4, lr=1e-3, anneal_lr=False, gamma=0.9, entropy_coef=0.01,
    hidden=(64, 64), eval_every=0, checkpoint_every=10**9,
)  # fmt: skip
STRESS: dict[str, dict[str, Any]] = {"default": {}, "relu": {"activation": "relu"}, "epochs": {"epochs": 12}}
HELP: dict[str, dict[str, Any]] = {
    "": {},
    "layer norm": {"layer_norm": True},
    "betas": {"betas": (0.99, 0.99)},
    "both": {"layer_norm": True, "betas": (0.99, 0.99)},
}
PLACE = ("stress", "help", "seed")
Row = dict[str, Any]


class Relabelled(nn.Module):
    """A TensorEnv of one-step episodes: a pattern is seen, and an action is right or wrong; what is right changes."""

    patterns: Tensor  # [patterns, size]
    right: Tensor  # [phases, patterns]
    shown: Tensor  # [N] the pattern that a lane sees
    taken: Tensor  # [1] steps of all lanes together

    def __init__(self, phases: int, every: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.num_envs, self.every, self.device = LANES, every, torch.device("cpu")
        self.single_observation_space: gym.Space = gym.spaces.Box(-np.inf, np.inf, (SIZE,))
        self.single_action_space: gym.Space = gym.spaces.Discrete(ACTIONS)
        self.register_buffer("patterns", torch.randn(PATTERNS, SIZE, generator=generator))
        self.register_buffer("right", torch.randint(ACTIONS, (phases, PATTERNS), generator=generator))
        self.register_buffer("shown", torch.zeros(LANES, dtype=torch.int64))
        self.register_buffer("taken", torch.zeros(1, dtype=torch.int64))

    def reset(self, seed: int) -> Tensor:
        self.shown.random_(PATTERNS, generator=torch.Generator().manual_seed(seed))
        return self.patterns[self.shown]

    def noise(self, steps: int) -> Tensor:
        return torch.rand(steps, LANES)

    def step(self, action: Tensor, noise: Tensor) -> Transition:
        phase = (self.taken // self.every).clamp(max=len(self.right) - 1)
        right = self.right.index_select(0, phase)[0].index_select(0, self.shown)
        reward, final = (action == right).float(), self.patterns.index_select(0, self.shown)
        self.shown.copy_((noise * PATTERNS).long())
        self.taken.add_(LANES)
        ended = torch.ones_like(reward, dtype=torch.bool)
        return Transition(self.patterns.index_select(0, self.shown), reward, ended, ~ended, final)


class Plan(NamedTuple):
    """One run."""

    stress: str
    help: str
    seed: int
    changes: int
    every: int
    compile: str

    @property
    def name(self) -> str:
        return f"{self.stress}{self.help and f', {self.help}'}, seed {self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        own = dict(steps=self.every * (self.changes + 1), features_every=self.every // LOOKS, compile=self.compile)
        return COMMON | STRESS[self.stress] | HELP[self.help] | own


def main() -> None:
    args = arguments(sys.argv[1:])
    path = args.results / "plasticity.json"
    if not args.table:
        plans = [
            Plan(stress, help, seed, args.changes, args.every, args.compile)
            for seed in range(args.seeds) for stress in args.only for help in HELP
        ]  # fmt: skip
        train_all([plan for plan in plans if not done(read(path), plan)], path, args.jobs)
    write_table(path)


def arguments(words: list[str]) -> argparse.Namespace:
    """What the command's words say; ends the process for words that make no plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=STRESS, default=list(STRESS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--changes", type=int, default=30)
    parser.add_argument("--every", type=int, default=49_152, help="steps between two changes")
    parser.add_argument("--compile", choices=("on", "off"), default="on")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args(words)
    whole = LANES * COMMON["horizon"] * LOOKS // 2  # collections between two looks, and in the last quarter of a phase
    if args.changes < 1 or args.every % whole:
        parser.error(f"--every must be a multiple of {whole}, --changes at least 1")
    return args


def train_all(plans: list[Plan], path: Path, jobs: int) -> None:
    """Train so many at a time, each in a fresh process, and keep each result as it comes."""
    command = " ".join(["python benchmarks/plasticity.py", *sys.argv[1:]])
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for future in as_completed([pool.submit(trained, plan) for plan in plans]):
            row: Row = future.result() | {"command": command}
            rows = [old for old in read(path) if any(old[name] != row[name] for name in PLACE)] + [row]
            rows.sort(key=lambda old: (list(STRESS).index(old["stress"]), list(HELP).index(old["help"]), old["seed"]))
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_durably(path, ("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n").encode())
            print(
                f"{time.strftime('%H:%M:%S')} {row['stress']}, {row['help'] or 'no help'}, seed {row['seed']}: "
                f"{row['phases'][0]:.2f} at first, {np.mean(row['phases'][-10:]):.2f} in the last ten phases, "
                f"{row['seconds']:.0f} s",
                flush=True,
            )


def trained(plan: Plan) -> Row:
    """The result of one run: reward a step at the end of each phase, and what the network looked like."""
    environment = Relabelled(plan.changes + 1, plan.every, plan.seed)
    with tempfile.TemporaryDirectory() as folder:
        run = proximo.train(
            environment, preset="discrete", seed=plan.seed, out=Path(folder) / "run", quiet=True, **plan.settings
        )
        rows = read_rows(run.folder / "metrics.jsonl")
    steps, returns = (np.array([row[name] for row in rows]) for name in ("step", "return_mean"))
    phase = (steps - 1) // plan.every
    late = steps - phase * plan.every > 0.75 * plan.every
    looks = [i for i, row in enumerate(rows) if "feature_rank" in row]
    told = zip([-1, *looks], looks, strict=False)
    means = [round(float(returns[before + 1 : i + 1].mean()), 4) for before, i in told]
    curve = [
        [rows[i]["step"], mean, rows[i]["feature_rank"], rows[i]["dead_units"]]
        for i, mean in zip(looks, means, strict=True)
    ]
    return {
        **{name: getattr(plan, name) for name in PLACE},
        "settings": json.loads(json.dumps(plan.settings)),
        "phases": [round(float(returns[late & (phase == k)].mean()), 4) for k in range(plan.changes + 1)],
        "curve": curve,
        "every": plan.every,
        "steps": rows[-1]["step"],
        "seconds": round(rows[-1]["seconds"], 1),
        "machine": machine(),
        "versions": versions("proximo", "torch", "gymnasium", "numpy"),
    }


def done(rows: list[Row], plan: Plan) -> bool:
    """Whether this run's result is among them, of the settings as they are now."""
    settings = json.loads(json.dumps(plan.settings))
    return any(all(row[n] == getattr(plan, n) for n in PLACE) and row["settings"] == settings for row in rows)


def read(path: Path) -> list[Row]:
    return json.loads(path.read_text()) if path.exists() else []


def write_table(path: Path) -> None:
    """plasticity.md and plasticity.png, beside the results."""
    from plasticity_table import draw, table  # draws, which a process that trains need not wait for

    rows = read(path)
    path.with_suffix(".md").write_text(table(rows))
    draw(rows, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
