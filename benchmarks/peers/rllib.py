"""RLlib's PPO, everything in one process, as its users run small work. Its Adam keeps eps 1e-8; there is no setting.

Observations are normalised by its own filter, rewards by Gymnasium's wrapper in each lane.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:1] = []  # this file must hide no namesake
sys.path.append(str(Path(__file__).resolve().parents[1]))  # works.py; last, for mujoco.py there must hide none either
HOME = tempfile.TemporaryDirectory()  # Ray writes results, logs and a token there
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "HOME": HOME.name}

import gymnasium as gym
import ray
import torch
from measure import Stopwatch, asked, report
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.tune.registry import register_env
from works import WORKS, Work

THREADS = 1  # a second one gained nothing, and cost much where the machine was busy


def lane(config: dict[str, Any]) -> gym.Env:
    """One environment, with scaled rewards where the work says so."""
    work = WORKS[config["work"]]
    env = gym.make(work.env)
    if not work.normalize:
        return env
    scaled = gym.wrappers.NormalizeReward(env, gamma=work.gamma)
    return gym.wrappers.TransformReward(scaled, lambda r: max(-10.0, min(10.0, float(r))))


def settings(work: Work, seed: int) -> PPOConfig:
    config = PPOConfig()
    config.environment("lane", env_config={"work": work.name}, normalize_actions=work.normalize)
    config.env_runners(
        num_env_runners=0,  # the process that learns collects as well
        num_envs_per_env_runner=work.envs,
        rollout_fragment_length=work.horizon,
        env_to_module_connector=(lambda env, spaces, device: MeanStdFilter()) if work.normalize else None,
    )
    config.learners(num_learners=0)
    config.training(
        lr=work.lr,
        gamma=work.gamma,
        lambda_=work.lam,
        train_batch_size_per_learner=work.rollout,
        minibatch_size=work.minibatch,
        num_epochs=work.epochs,
        clip_param=work.clip,
        vf_loss_coeff=work.value_coef,
        vf_clip_param=float("inf"),
        entropy_coeff=0.0,
        use_kl_loss=False,
        grad_clip=work.max_grad_norm,
        grad_clip_by="global_norm",
    )
    model = DefaultModelConfig(fcnet_hiddens=list(work.hidden), fcnet_activation="tanh", vf_share_layers=False)
    config.rl_module(model_config=model)
    config.debugging(seed=seed, log_level="ERROR")
    return config


def main() -> None:
    work, steps, seed = asked("A", "B", "B8")
    torch.set_num_threads(THREADS)
    register_env("lane", lane)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=HOME.name)
    algorithm, learning = settings(work, seed).build_algo(), Stopwatch()
    algorithm.learner_group.update = learning.around(algorithm.learner_group.update)
    result: dict[str, Any] = {}
    begin = time.perf_counter()
    for _ in range(work.updates(steps)):
        result = algorithm.train()
    seconds = time.perf_counter() - begin
    algorithm.stop()
    ray.shutdown()
    final = None if work.normalize else result["env_runners"].get("episode_return_mean")  # else of scaled rewards
    more = dict(updates=work.updates(steps), learning=learning, final_return=final)
    taken, packages = int(result["num_env_steps_sampled_lifetime"]), ("ray", "torch", "gymnasium", "numpy", "mujoco")
    report("rllib", work, taken, seconds, packages, **more)


if __name__ == "__main__":
    main()
