"""skrl's PPO. It standardises advantages once a collection, and keeps the steps on which an episode is reset."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path[:1] = []  # this file must hide no namesake
sys.path.append(str(Path(__file__).resolve().parents[1]))  # works.py; last, for mujoco.py there must hide none either

import torch
from lanes import gymnasium_lanes, last_return, real_steps
from measure import Stopwatch, asked, report
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import Wrapper, wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, GaussianMixin, Model
from skrl.trainers.torch import SequentialTrainer
from skrl.utils import set_seed
from torch import Tensor, nn
from works import Work

THREADS = 1  # a second one gained nothing, and cost much where the machine was busy


def tower(inputs: int, work: Work, outputs: int) -> nn.Sequential:
    one, two = work.hidden
    return nn.Sequential(nn.Linear(inputs, one), nn.Tanh(), nn.Linear(one, two), nn.Tanh(), nn.Linear(two, outputs))


class Discrete(CategoricalMixin, Model):
    """CartPole's policy."""

    def __init__(self, work: Work, **spaces: Any) -> None:
        Model.__init__(self, **spaces)
        CategoricalMixin.__init__(self)
        self.net = tower(self.num_observations, work, self.num_actions)

    def compute(self, inputs: dict[str, Tensor], role: str = "") -> tuple[Tensor, dict[str, Any]]:
        return self.net(inputs["observations"]), {}


class Continuous(GaussianMixin, Model):
    """HalfCheetah's policy."""

    def __init__(self, work: Work, **spaces: Any) -> None:
        Model.__init__(self, **spaces)
        GaussianMixin.__init__(self)
        self.net = tower(self.num_observations, work, self.num_actions)
        self.log_std = nn.Parameter(torch.zeros(self.num_actions))

    def compute(self, inputs: dict[str, Tensor], role: str = "") -> tuple[Tensor, dict[str, Any]]:
        return self.net(inputs["observations"]), {"log_std": self.log_std}


class Value(DeterministicMixin, Model):
    def __init__(self, work: Work, **spaces: Any) -> None:
        Model.__init__(self, **spaces)
        DeterministicMixin.__init__(self)
        self.net = tower(self.num_observations, work, 1)

    def compute(self, inputs: dict[str, Tensor], role: str = "") -> tuple[Tensor, dict[str, Any]]:
        return self.net(inputs["observations"]), {}


def agent_for(work: Work, env: Wrapper) -> PPO:
    config = PPO_CFG(
        rollouts=work.horizon,
        learning_epochs=work.epochs,
        mini_batches=work.minibatches,
        discount_factor=work.gamma,
        gae_lambda=work.lam,
        learning_rate=work.lr,
        grad_norm_clip=work.max_grad_norm,
        ratio_clip=work.clip,
        value_clip=0.0,
        entropy_loss_scale=0.0,
        value_loss_scale=work.value_coef,
    )
    config.experiment.write_interval = config.experiment.checkpoint_interval = 0
    spaces = dict(observation_space=env.observation_space, action_space=env.action_space, device="cpu")
    policy = (Continuous if work.normalize else Discrete)(work, **spaces)
    memory = RandomMemory(memory_size=work.horizon, num_envs=work.envs, device="cpu")
    agent = PPO(models={"policy": policy, "value": Value(work, **spaces)}, memory=memory, cfg=config, **spaces)
    agent.optimizer.param_groups[0]["eps"] = work.adam_eps  # there is no setting for it
    return agent


def main() -> None:
    work, steps, seed = asked("A", "B", "B8")
    torch.set_num_threads(THREADS)
    set_seed(seed)
    lanes, counted = gymnasium_lanes(work)
    env = wrap_env(lanes, wrapper="gymnasium", verbose=False)
    agent, learning = agent_for(work, env), Stopwatch()
    agent.update = learning.around(agent.update)
    settings = {"timesteps": steps // work.envs, "headless": True, "disable_progressbar": True}
    settings["close_environment_at_exit"] = False  # it would print after the result
    trainer = SequentialTrainer(env=env, agents=agent, cfg=settings)
    begin = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begin
    packages = ("skrl", "torch", "gymnasium", "numpy", "mujoco")
    more = dict(updates=work.updates(steps), learning=learning, final_return=last_return(counted))
    report("skrl", work, real_steps(steps, counted), seconds, packages, **more)


if __name__ == "__main__":
    main()
