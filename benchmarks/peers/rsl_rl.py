"""RSL-RL's PPO, which has continuous actions alone. It clips the gradients of its two towers apart."""

from __future__ import annotations

import os
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

sys.path[:1] = []  # this file must hide no namesake
sys.path.append(str(Path(__file__).resolve().parents[1]))  # works.py; last, for mujoco.py there must hide none either

import numpy as np
import torch
from lanes import gymnasium_lanes, last_return, real_steps
from measure import Stopwatch, asked, report
from rsl_rl.env import VecEnv
from rsl_rl.runners import OnPolicyRunner
from tensordict import TensorDict
from torch import Tensor
from works import Work

THREADS = 1  # a second one gained nothing, and cost much where the machine was busy


class Lanes(VecEnv):
    """Gymnasium's lanes, as RSL-RL sees environments."""

    def __init__(self, work: Work, seed: int) -> None:
        self.lanes, self.counted = gymnasium_lanes(work)
        space = self.lanes.single_action_space
        self.low, self.high = torch.as_tensor(space.low), torch.as_tensor(space.high)
        self.num_envs, self.num_actions = work.envs, space.shape[0]
        self.max_episode_length, self.device, self.cfg = 1000, "cpu", {}
        self.episode_length_buf = torch.zeros(work.envs, dtype=torch.long)
        self.observation = self.lanes.reset(seed=seed)[0]

    def get_observations(self) -> TensorDict:
        return TensorDict({"policy": torch.from_numpy(self.observation)}, batch_size=[self.num_envs])

    def step(self, actions: Tensor) -> tuple[TensorDict, Tensor, Tensor, dict[str, Any]]:
        action = actions.clamp(self.low, self.high).numpy()
        self.observation, reward, terminated, truncated, _ = self.lanes.step(action)
        done = torch.from_numpy(terminated | truncated).long()
        extras = {"time_outs": torch.from_numpy(truncated)}
        return self.get_observations(), torch.from_numpy(reward.astype(np.float32)), done, extras


def settings(work: Work) -> dict[str, Any]:
    tower = {"class_name": "MLPModel", "hidden_dims": list(work.hidden), "activation": "tanh"}
    return {
        "num_steps_per_env": work.horizon,
        "save_interval": 10**9,
        "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
        "actor": {**tower, "distribution_cfg": {"class_name": "GaussianDistribution", "init_std": 1.0}},
        "critic": tower,
        "algorithm": {
            "class_name": "PPO",
            "num_learning_epochs": work.epochs,
            "num_mini_batches": work.minibatches,
            "clip_param": work.clip,
            "gamma": work.gamma,
            "lam": work.lam,
            "value_loss_coef": work.value_coef,
            "entropy_coef": 0.0,
            "learning_rate": work.lr,
            "max_grad_norm": work.max_grad_norm,
            "use_clipped_value_loss": False,
            "schedule": "fixed",
            "normalize_advantage_per_mini_batch": True,
        },
    }


def main() -> None:
    work, steps, seed = asked("B", "B8")
    torch.set_num_threads(THREADS)
    torch.manual_seed(seed)
    env, learning = Lanes(work, seed), Stopwatch()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        runner = OnPolicyRunner(env, settings(work), log_dir=None, device="cpu")
        runner.alg.optimizer.param_groups[0]["eps"] = work.adam_eps  # there is no setting for it
        runner.alg.update = learning.around(runner.alg.update)
        begin = time.perf_counter()
        runner.learn(work.updates(steps))
        seconds = time.perf_counter() - begin
    packages = ("rsl-rl-lib", "torch", "tensordict", "gymnasium", "numpy", "mujoco")
    more = dict(updates=work.updates(steps), learning=learning, final_return=last_return(env.counted))
    report("rsl_rl", work, real_steps(steps, env.counted), seconds, packages, **more)


if __name__ == "__main__":
    main()
