"""Sample Factory's PPO, synchronous, in one process. It needs Gymnasium before 1.0, which has no HalfCheetah-v5."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:1] = []  # this file must hide no namesake
sys.path.append(str(Path(__file__).resolve().parents[1]))  # works.py; last, for mujoco.py there must hide none either

import gymnasium as gym
import numpy as np
import torch
from measure import Stopwatch, asked, report
from sample_factory.algo.learning.learner import Learner
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.train import make_runner
from works import Work

THREADS = 1  # a second one gained nothing, and cost much where the machine was busy


def made(name: str, config: Any = None, lane: Any = None, render_mode: str | None = None) -> gym.Env:
    """One lane."""
    return gym.make(name)


def settings(work: Work, steps: int, seed: int, folder: str) -> Any:
    arguments = {
        "env": work.env,
        "experiment": "speed",
        "train_dir": folder,
        "seed": seed,
        "device": "cpu",
        "serial_mode": True,  # workers of its own were slower on two cores
        "async_rl": False,
        "batched_sampling": False,
        "num_workers": 1,
        "num_envs_per_worker": work.envs,
        "worker_num_splits": 1,
        "rollout": work.horizon,
        "batch_size": work.minibatch,
        "num_batches_per_epoch": work.minibatches,
        "num_epochs": work.epochs,
        "shuffle_minibatches": True,
        "gamma": work.gamma,
        "gae_lambda": work.lam,
        "ppo_clip_ratio": work.clip,
        "ppo_clip_value": 1e6,
        "value_loss_coeff": work.value_coef,
        "value_bootstrap": True,
        "exploration_loss_coeff": 0.0,
        "learning_rate": work.lr,
        "lr_schedule": "constant",
        "adam_eps": work.adam_eps,
        "max_grad_norm": work.max_grad_norm,
        "reward_clip": 1e6,
        "normalize_input": False,
        "normalize_returns": False,
        "use_rnn": False,
        "actor_critic_share_weights": False,
        "nonlinearity": "tanh",
        "train_for_env_steps": steps,
        "save_every_sec": 10**6,
        "save_best_every_sec": 10**6,
        "decorrelate_experience_max_seconds": 0,
        "decorrelate_envs_on_one_worker": False,
        "log_to_file": False,
    }
    given = [f"--{name}={value}" for name, value in arguments.items()]
    given += ["--encoder_mlp_layers", *map(str, work.hidden)]
    return parse_full_cfg(parse_sf_args(given)[0], given)


def main() -> None:
    work, steps, seed = asked("A")
    logging.getLogger("rl").setLevel(logging.ERROR)
    register_env(work.env, made)
    learning = Stopwatch()
    Learner.train = learning.around(Learner.train)
    with tempfile.TemporaryDirectory() as folder:
        _, runner = make_runner(settings(work, steps, seed, folder))
        runner.init()
        torch.set_num_threads(THREADS)
        begin = time.perf_counter()
        runner.run()
        seconds = time.perf_counter() - begin
    taken = runner.total_env_steps_since_resume
    last = runner.policy_avg_stats.get("reward", [[]])[0]
    final = float(np.mean(last)) if len(last) else None
    packages = ("sample-factory", "torch", "gymnasium", "numpy")
    more = dict(updates=learning.calls, learning=learning, final_return=final)
    report("sample_factory", work, taken, seconds, packages, **more)


if __name__ == "__main__":
    main()
