"""What benchmarks/mujoco.py trains, and what others published: plain tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from proximo.errors import ProximoError
from proximo.presets import preset_for, preset_named
from proximo.presets.preset import Preset
from proximo.run.config import Resolved, known_settings, resolved

STEPS = 1_000_000
EVERY = 100_000  # steps between evaluations
IDLE = ("sequence",)  # of a memory, which none of these has
FASTEST = ("HalfCheetah-v5", "InvertedPendulum-v5", "Reacher-v5")  # a step takes 16 to 30 µs, of the others 43 to 83
TASKS = (
    "HalfCheetah-v5", "Hopper-v5", "InvertedDoublePendulum-v5", "InvertedPendulum-v5", "Reacher-v5", "Swimmer-v5",
    "Walker2d-v5",
)  # fmt: skip
ANY = gym.spaces.Box(-1, 1)  # stands for the tasks' action spaces where a preset is looked for


@dataclass(frozen=True)
class Setting:
    """An algorithm with its numbers: a preset, and what is asked for over it."""

    name: str
    algo: str
    preset: str
    asked: dict[str, Any] = field(default_factory=dict)
    seeds: int = 3
    first: int = 0  # of the seeds
    tasks: tuple[str, ...] = TASKS
    presets: dict[str, str] = field(default_factory=dict)  # of tasks that need another one
    algos: dict[str, str] = field(default_factory=dict)  # likewise

    def preset_on(self, env: str) -> str:
        return self.presets.get(env, self.preset)

    def algo_on(self, env: str) -> str:
        return self.algos.get(env, self.algo)

    def chosen(self, env: str) -> Preset:
        name = self.preset_on(env)
        return preset_for(env, ANY, self.algo_on(env)) if name == "auto" else preset_named(name)

    def numbers(self, env: str) -> dict[str, Any]:
        """All that is not a default."""
        algo = self.algo_on(env)
        taken = self.chosen(env).settings_for(algo, known_settings(algo))
        return taken | self.asked | {"steps": STEPS}

    def config(self, env: str) -> Resolved:
        """All that there is; a ProximoError where it makes no run (an algorithm that is not there, say)."""
        return resolved(env, self.algo_on(env), self.chosen(env).name, self.numbers(env))

    def key(self, env: str) -> str:
        """A short name for the numbers that are no defaults."""
        told = json.dumps([self.algo_on(env), self.numbers(env)], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:8]

    def trained(self, row: dict[str, Any]) -> bool:
        """Whether a result is of these numbers, and of the defaults as they are now (those that it knew)."""
        now = self.config(row["env"])
        network = {name: value for name, value in vars(now.network).items() if name not in IDLE}
        there = {"algorithm": vars(now.algorithm), "network": network}
        known = {part: there[part].keys() & row["config"][part].keys() for part in there}
        told = [(there[part][name], row["config"][part][name]) for part in there for name in known[part]]
        return row["key"] == self.key(row["env"]) and all(json.dumps(a) == json.dumps(b) for a, b in told)


OF_SWIMMER: dict[str, Any] = dict(presets={"Swimmer-v5": "tuned-swimmer"}, algos={"Swimmer-v5": "recompute"})
PPO = (
    Setting("tuned", "penalty", "tuned", seeds=5, first=2, **OF_SWIMMER),  # seeds 0 and 1 chose its numbers
    Setting("paper", "ppo", "paper", seeds=5),  # the ablation's clip 0.2
)
OTHERS = (
    Setting("penalty", "penalty", "paper", {"target_kl": 0.01}),  # the ablation's adaptive KL 0.01
    Setting("trpo", "trpo", "auto"),
    Setting("a2c", "a2c", "auto"),
    Setting("natural", "natural", "auto"),
)
ABLATION = (
    *(Setting(f"clip-{x}", "ppo", "paper", {"clip": x}, seeds=5, tasks=FASTEST) for x in (0.1, 0.3)),
    *(Setting(f"penalty-{x}", "penalty", "paper", {"target_kl": x}, tasks=FASTEST) for x in (0.003, 0.03)),
    *(Setting(f"fixed-kl-{x}", "fixed_kl", "paper", {"beta": x}, tasks=FASTEST) for x in (0.3, 10.0)),
    *(Setting(f"fixed-kl-{x}", "fixed_kl", "paper", {"beta": x}) for x in (1.0, 3.0)),  # the best here, and the paper's
    Setting("unconstrained", "unconstrained", "paper"),
)
SETTINGS = {setting.name: setting for setting in (*PPO, *OTHERS, *ABLATION)}


@dataclass(frozen=True)
class Job:
    """One run: a setting on a task with a seed."""

    setting: Setting
    env: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.setting.name}-{self.env}-{self.seed}"


def jobs(only: list[str]) -> Iterator[Job]:
    """Every run in the order of its worth: seed by seed, PPO, then the other algorithms, then the ablation.

    `only` names settings and tasks; either kind that is not named is taken whole.
    """
    for nth in range(max(setting.seeds for setting in SETTINGS.values())):
        for setting in SETTINGS.values():
            for env in setting.tasks:
                job = Job(setting, env, setting.first + nth)
                if nth < setting.seeds and wanted(job, only):
                    yield job


def wanted(job: Job, only: list[str]) -> bool:
    names, tasks = [word for word in only if word in SETTINGS], [word for word in only if word in TASKS]
    return (not names or job.setting.name in names) and (not tasks or job.env in tasks)


def impossible(job: Job) -> str | None:
    """Why a job cannot be run here (yet); None if it can."""
    try:
        job.setting.config(job.env)
    except ProximoError as error:
        return str(error)
    return None
