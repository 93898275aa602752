"""Proximo, compiled. Its clock counts collecting and learning from the second update on.

The first update, in which everything is compiled, is reported as compile_seconds; checkpoints and the evaluation at
the end stand apart too.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:1] = []  # this file must hide no namesake
sys.path.append(str(Path(__file__).resolve().parents[1]))  # works.py; last, for mujoco.py there must hide none either

import gymnasium as gym
import numpy as np
import torch
from measure import Stopwatch, asked, report
from works import Work

import proximo
from proximo.advantages import standardize
from proximo.algorithms import ppo
from proximo.batch import Batch
from proximo.compiler import compiling
from proximo.models.actor_critic import ActorCritic
from proximo.models.network import Network
from proximo.objectives import clip, entropy, value_error
from proximo.run import session
from proximo.updaters.adam import Adam
from proximo.updaters.sgd import sgd

EVALUATED = 500  # steps
PACKAGES = ("proximo", "torch", "gymnasium", "numpy", "mujoco", "envpool")


def main(name: str = "ours", compile: str = "on", precision: str = "float32") -> None:
    work, steps, seed = asked("A", "A-tensor", "B", "B8", "A-update", "B-update", "C")
    if work.name.endswith("update"):
        update_alone(name, work, compile == "on")
    else:
        trained(name, work, steps, seed, "auto" if work.pixels else compile, precision)


def trained(name: str, work: Work, steps: int, seed: int, compile: str, precision: str) -> None:
    """The whole cycle, as `proximo train` does it."""
    updates: list[float] = []
    ppo.sgd = clocked(ppo.sgd, updates)
    if work.pixels:
        session.single = partial(shortened, session.single)
    with tempfile.TemporaryDirectory() as folder:
        run = proximo.train(
            work.env,
            steps=steps,
            seed=seed,
            out=Path(folder) / "run",
            quiet=True,
            preset="atari" if work.pixels else "continuous" if work.normalize else "discrete",
            backend="tensor" if work.name == "A-tensor" else "auto",
            compile=compile,
            threads=2 if work.pixels else 1,
            precision=precision,
            envs=work.envs,
            horizon=work.horizon,
            epochs=work.epochs,
            minibatches=work.minibatches,
            lr=work.lr,
            anneal_lr=False,
            gamma=work.gamma,
            lam=work.lam,
            clip=work.clip,
            value_coef=2 * work.value_coef,  # here half the squared error is weighed
            entropy_coef=0.0,
            max_grad_norm=work.max_grad_norm,
            hidden=work.hidden,
            normalize_observation=work.normalize,
            normalize_reward=work.normalize,
            checkpoint_every=100_000,
            eval_every=0,
            eval_episodes=1,
        )
        rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    first, last = rows[0], rows[-1]
    seconds = last["seconds"] - first["seconds"]
    more = dict(
        updates=len(rows) - 1,
        learning=Stopwatch(sum(updates[1:]), len(updates) - 1),
        compile_seconds=round(first["seconds"] - seconds / (len(rows) - 1), 2),
        final_return=run.metrics["return_mean"],
    )
    report(name, work, last["step"] - first["step"], seconds, PACKAGES, **more)


def shortened(single: Callable[..., Any], env: Any, limit: int | None = None, **options: Any) -> Any:
    """Makes what is evaluated, at the end and off the clock: the first steps of a game, which may be endless."""
    return single(env, limit or EVALUATED, **options)


def clocked(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The same function; each call adds what it took."""

    def timed(*args: Any) -> Any:
        begin = time.perf_counter()
        result = function(*args)
        seconds.append(time.perf_counter() - begin)
        return result

    return timed


def update_alone(name: str, work: Work, compile: bool) -> None:
    """Gradient steps on random data: the median of 20 updates."""
    torch.set_num_threads(1)
    inputs, space = (17, gym.spaces.Box(-1, 1, (6,))) if work.normalize else (4, gym.spaces.Discrete(2))
    policy = ActorCritic(gym.spaces.Box(-1, 1, (inputs,)), space, Network(hidden=work.hidden))
    shape = work.horizon, work.envs
    observation = torch.randn(*shape, inputs)
    action = policy.act(observation, policy.noise(*shape))[0]
    columns = {column: torch.randn(shape) for column in ("advantage", "returns")}
    batch = Batch(observation=observation, action=action, mask=torch.ones(shape, dtype=torch.bool), **columns)
    with torch.no_grad():
        batch = batch.replace(logp=policy.evaluate(batch).logp)
    optimizer = Adam(policy, lr=work.lr, eps=work.adam_eps)
    objective = clip(work.clip) + 2 * work.value_coef * value_error() - 0.0 * entropy()
    arguments = (policy, optimizer, objective, batch, work.epochs, work.minibatches, work.max_grad_norm, standardize)
    taken = []
    with compiling(compile):
        for _ in range(23):
            begin = time.perf_counter()
            sgd(*arguments)
            taken.append(time.perf_counter() - begin)
    each = float(np.median(taken[3:])) / (work.epochs * work.minibatches)
    report(
        name, work, 20 * work.rollout, sum(taken[3:]), PACKAGES, update_us=round(1e6 * each, 1), steps_per_second=None
    )


if __name__ == "__main__":
    main()
