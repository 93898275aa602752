"""Stable-Baselines3's PPO, the reference of the speed benchmark."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path[:1] = []  # this file must hide no namesake
sys.path.append(str(Path(__file__).resolve().parents[1]))  # works.py; last, for mujoco.py there must hide none either

import gymnasium
import numpy as np
import torch
from measure import Stopwatch, asked, report
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize
from works import Work

THREADS = 1  # torch's own default of one a core was slower on every work
WORKERS = False  # eight HalfCheetahs on two cores: in process was faster than in workers


def environments(work: Work, seed: int) -> VecEnv:
    """The work's lanes, with Monitor's returns, normalised where the work says so."""
    if work.pixels:
        import ale_py

        gymnasium.register_envs(ale_py)
        lanes = make_atari_env(
            work.env, work.envs, seed=seed, env_kwargs=dict(frameskip=1, repeat_action_probability=0)
        )
        return VecFrameStack(lanes, 4)
    in_workers = WORKERS and work.normalize and work.envs > 1
    kind = SubprocVecEnv if in_workers else DummyVecEnv
    lanes = make_vec_env(work.env, work.envs, seed=seed, vec_env_cls=kind)
    return VecNormalize(lanes, clip_obs=10.0, clip_reward=10.0, gamma=work.gamma) if work.normalize else lanes


def main() -> None:
    work, steps, seed = asked("A", "B", "B8", "C")
    torch.set_num_threads(2 if work.pixels else THREADS)
    lanes = environments(work, seed)
    model = PPO(
        "CnnPolicy" if work.pixels else "MlpPolicy",  # NatureCNN; two tanh towers of 64 × 64; Adam with eps 1e-5
        lanes,
        learning_rate=work.lr,
        n_steps=work.horizon,
        batch_size=work.minibatch,
        n_epochs=work.epochs,
        gamma=work.gamma,
        gae_lambda=work.lam,
        clip_range=work.clip,
        ent_coef=0.0,
        vf_coef=work.value_coef,
        max_grad_norm=work.max_grad_norm,
        seed=seed,
        device="cpu",
    )
    learning = Stopwatch()
    model.train = learning.around(model.train)
    begin = time.perf_counter()
    model.learn(steps)
    seconds = time.perf_counter() - begin
    returns = [episode["r"] for episode in model.ep_info_buffer or ()]
    lanes.close()
    packages = ("stable-baselines3", "torch", "gymnasium", "numpy", "mujoco")
    final = float(np.mean(returns)) if returns else None
    report("stable_baselines3", work, model.num_timesteps, seconds, packages, learning=learning, final_return=final)


if __name__ == "__main__":
    main()
