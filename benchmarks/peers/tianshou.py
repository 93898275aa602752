"""Tianshou's PPO, with its own normaliser of observations and, as in its MuJoCo examples, scaling of returns."""

from __future__ import annotations

import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

sys.path[:1] = []  # this file must hide no namesake
sys.path.append(str(Path(__file__).resolve().parents[1]))  # works.py; last, for mujoco.py there must hide none either

import gymnasium as gym
import numpy as np
import torch
from measure import Stopwatch, asked, report
from tianshou.algorithm.modelfree.ppo import PPO
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import BaseVectorEnv, DummyVectorEnv, VectorEnvNormObs
from tianshou.trainer import OnPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal
from works import Work

THREADS = 1  # a second one gained nothing, and cost much where the machine was busy


def environments(work: Work, seed: int) -> BaseVectorEnv:
    """The work's lanes in process; workers were slower."""
    lanes = DummyVectorEnv([lambda: gym.make(work.env) for _ in range(work.envs)])
    lanes.seed(seed)
    return VectorEnvNormObs(lanes) if work.normalize else lanes


def gaussian(mean_and_deviation: tuple[Tensor, Tensor]) -> Distribution:
    return Independent(Normal(*mean_and_deviation), 1)


def categorical(logits: Tensor) -> Distribution:
    return Categorical(logits=logits)


def algorithm_for(work: Work) -> PPO:
    one = gym.make(work.env)
    observations, actions = one.observation_space.shape, one.action_space

    def body() -> Net:
        return Net(state_shape=observations, hidden_sizes=work.hidden, activation=nn.Tanh)

    if work.normalize:
        actor: Any = ContinuousActorProbabilistic(preprocess_net=body(), action_shape=actions.shape, unbounded=True)
        critic: Any = ContinuousCritic(preprocess_net=body())
    else:
        actor = DiscreteActor(preprocess_net=body(), action_shape=actions.n, softmax_output=False)
        critic = DiscreteCritic(preprocess_net=body())
    policy = ProbabilisticActorPolicy(
        actor=actor,
        dist_fn=gaussian if work.normalize else categorical,
        action_space=actions,
        action_scaling=work.normalize,
        action_bound_method="clip" if work.normalize else None,
    )
    return PPO(
        policy=policy,
        critic=critic,
        optim=AdamOptimizerFactory(lr=work.lr, eps=work.adam_eps),
        eps_clip=work.clip,
        vf_coef=work.value_coef,
        ent_coef=0.0,
        max_grad_norm=work.max_grad_norm,
        gae_lambda=work.lam,
        gamma=work.gamma,
        max_batchsize=work.rollout,
        return_scaling=work.normalize,
    )


def main() -> None:
    work, steps, seed = asked("A", "B", "B8")
    torch.set_num_threads(THREADS)
    np.random.seed(seed)
    torch.manual_seed(seed)
    algorithm, lanes, learning = algorithm_for(work), environments(work, seed), Stopwatch()
    collector = Collector(algorithm, lanes, VectorReplayBuffer(work.rollout, work.envs))
    algorithm.update = learning.around(algorithm.update)
    collect, returns = collector.collect, deque[float](maxlen=100)

    def collect_and_note(*args: Any, **kwargs: Any) -> Any:
        stats = collect(*args, **kwargs)
        returns.extend(stats.returns)
        return stats

    collector.collect = collect_and_note
    params = OnPolicyTrainerParams(
        max_epochs=1,
        epoch_num_steps=steps,
        training_collector=collector,
        collection_step_num_env_steps=work.rollout,
        batch_size=work.minibatch,
        update_step_num_repetitions=work.epochs,
        verbose=False,
        show_progress=False,
    )
    begin = time.perf_counter()
    algorithm.run_training(params)
    seconds = time.perf_counter() - begin
    packages = ("tianshou", "torch", "gymnasium", "numpy", "mujoco")
    final = float(np.mean(returns)) if returns else None
    report("tianshou", work, collector.collect_step, seconds, packages, learning=learning, final_return=final)


if __name__ == "__main__":
    main()
