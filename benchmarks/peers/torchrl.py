"""TorchRL's collector, GAE and clipped loss, in the loop that its own PPO example has, uncompiled as there.

Rewards are scaled by Gymnasium's wrapper in each lane, because TorchRL's own normaliser would centre them.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path[:1] = []  # this file must hide no namesake
sys.path.append(str(Path(__file__).resolve().parents[1]))  # works.py; last, for mujoco.py there must hide none either

import gymnasium as gym
import numpy as np
import torch
from measure import Stopwatch, asked, report
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Categorical
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
from torchrl.envs import ClipTransform, DoubleToFloat, EnvBase, ExplorationType, GymWrapper, TransformedEnv, VecNormV2
from torchrl.modules import MLP, IndependentNormal, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE
from works import Work

THREADS = 1  # a second one gained nothing, and cost much where the machine was busy


def environments(work: Work) -> tuple[EnvBase, list[gym.wrappers.RecordEpisodeStatistics]]:
    """The work's lanes in process, and the wrappers that know the episodes' returns."""
    counted = [gym.wrappers.RecordEpisodeStatistics(gym.make(work.env)) for _ in range(work.envs)]

    def one(lane: gym.Env) -> gym.Env:
        if not work.normalize:
            return lane
        scaled = gym.wrappers.NormalizeReward(lane, gamma=work.gamma)
        return gym.wrappers.TransformReward(scaled, lambda r: max(-10.0, min(10.0, float(r))))

    made = [lambda lane=lane: one(lane) for lane in counted]
    vector = gym.vector.SyncVectorEnv(made, autoreset_mode=gym.vector.AutoresetMode.DISABLED)
    env: EnvBase = GymWrapper(vector, categorical_action_encoding=True)
    if work.normalize:
        env = TransformedEnv(env, DoubleToFloat(in_keys=["observation"]))
        env.append_transform(VecNormV2(in_keys=["observation"], decay=1.0, reduce_batch_dims=True))
        env.append_transform(ClipTransform(in_keys=["observation"], low=-10, high=10))
    return env, counted


class Means(nn.Module):
    """A Gaussian's parameters: a tower, and a deviation that does not depend on the state."""

    def __init__(self, tower: nn.Module, actions: int) -> None:
        super().__init__()
        self.tower, self.log_std = tower, nn.Parameter(torch.zeros(actions))

    def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = self.tower(observation)
        return mean, self.log_std.exp().expand_as(mean)


def networks(work: Work, env: EnvBase) -> tuple[ProbabilisticActor, ValueOperator]:
    inputs = env.observation_spec["observation"].shape[-1]

    def tower(outputs: int) -> MLP:
        return MLP(in_features=inputs, out_features=outputs, num_cells=list(work.hidden), activation_class=nn.Tanh)

    if work.normalize:
        actions = env.action_spec.shape[-1]
        module, names, kind = Means(tower(actions), actions), ["loc", "scale"], IndependentNormal
    else:
        module, names, kind = tower(env.action_spec.space.n), ["logits"], Categorical
    actor = ProbabilisticActor(
        TensorDictModule(module, in_keys=["observation"], out_keys=names),
        in_keys=names,
        distribution_class=kind,
        return_log_prob=True,
        default_interaction_type=ExplorationType.RANDOM,
    )
    return actor, ValueOperator(tower(1), in_keys=["observation"])


class Learner:
    """One update: advantages, then epochs of minibatches."""

    def __init__(self, work: Work, actor: ProbabilisticActor, critic: ValueOperator) -> None:
        self.work = work
        self.gae = GAE(gamma=work.gamma, lmbda=work.lam, value_network=critic, average_gae=False)
        self.loss = ClipPPOLoss(
            actor,
            critic,
            clip_epsilon=work.clip,
            entropy_bonus=False,
            critic_coeff=work.value_coef,
            loss_critic_type="l2",
            normalize_advantage=True,
        )
        self.parameters = [*actor.parameters(), *critic.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=work.lr, eps=work.adam_eps)
        storage, sampler = LazyTensorStorage(work.rollout), SamplerWithoutReplacement()
        self.buffer = TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=work.minibatch)

    def update(self, rows: TensorDict) -> None:
        with torch.no_grad():
            rows = self.gae(rows)
        self.buffer.empty()
        self.buffer.extend(rows.reshape(-1))
        for _ in range(self.work.epochs):
            for minibatch in self.buffer:
                losses = self.loss(minibatch)
                self.optimizer.zero_grad(set_to_none=True)
                (losses["loss_objective"] + losses["loss_critic"]).backward()
                nn.utils.clip_grad_norm_(self.parameters, self.work.max_grad_norm)
                self.optimizer.step()


def main() -> None:
    work, steps, seed = asked("A", "B", "B8")
    torch.set_num_threads(THREADS)
    torch.manual_seed(seed)
    env, counted = environments(work)
    env.set_seed(seed)
    actor, critic = networks(work, env)
    learner, learning = Learner(work, actor, critic), Stopwatch()
    update = learning.around(learner.update)
    collector = Collector(
        env, actor, frames_per_batch=work.rollout, total_frames=steps, auto_register_policy_transforms=False
    )
    begin = time.perf_counter()
    for rows in collector:
        update(rows)
    seconds = time.perf_counter() - begin
    returns = [total for lane in counted for total in list(lane.return_queue)[-100 // work.envs :]]
    collector.shutdown()
    packages = ("torchrl", "tensordict", "torch", "gymnasium", "numpy", "mujoco")
    final = float(np.mean(returns)) if returns else None
    report("torchrl", work, steps, seconds, packages, learning=learning, final_return=final)


if __name__ == "__main__":
    main()
