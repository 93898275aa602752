"""Experience from environments that live in tensors, on the policy's device, which nobody waits for in a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from proximo.batch import Batch
from proximo.compiler import fused
from proximo.errors import EnvFailure, NonFiniteError
from proximo.policy import Policy
from proximo.sources.envs import judging
from proximo.sources.episodes import Episodes
from proximo.state import live_tensors

UNROLLED = 32  # steps in one compiled call, where the horizon is a multiple of it


class Transition(NamedTuple):
    """What one step of N lanes returns. Lanes whose episode ended have begun a new one already."""

    observation: Tensor  # [N, ...] what the policy sees next: the first observation of a new episode where one ended
    reward: Tensor  # [N]
    terminated: Tensor  # [N] bool
    truncated: Tensor  # [N] bool
    final: Tensor  # [N, ...] the observation that the action led to: another one only where an episode ended


@runtime_checkable
class TensorEnv(Protocol):
    """Lanes in tensors on one device. One that is an nn.Module, its state in buffers, is compiled with the policy."""

    num_envs: int
    single_observation_space: gym.Space
    single_action_space: gym.Space

    @property
    def device(self) -> torch.device: ...

    def reset(self, seed: int) -> Tensor:
        """Begin an episode in every lane: observations [N, ...]. All randomness follows from the seed."""
        ...

    def noise(self, steps: int) -> Tensor:
        """The randomness of `steps` steps, [steps, ...], drawn from torch's global generator; of any shape."""
        ...

    def step(self, action: Tensor, noise: Tensor) -> Transition:
        """Step every lane with actions in the policy's own units (`Distribution`)."""
        ...


class TensorSource:
    """Collects `horizon` steps from every lane of a TensorEnv. `make` and `restart` are as in `EnvSource`."""

    def __init__(self, make: Callable[[int], TensorEnv], horizon: int) -> None:
        self.make, self.horizon = make, horizon
        self.episodes = Episodes()
        self.policy: Policy | None = None
        self.unrolled = UNROLLED if horizon % UNROLLED == 0 else 1

    def restart(self, seed: int) -> None:
        """Start first episodes from `seed`; the open ones are given up."""
        if not hasattr(self, "env"):
            self.env = self.make(seed)
        self.observation = self.env.reset(seed)
        self.fresh = torch.ones(self.env.num_envs, dtype=torch.bool, device=self.observation.device)
        self.episodes.restart(self.env.num_envs)

    def collect(self, policy: Policy) -> Batch:
        """`horizon` steps of every lane, with log-probabilities and values under `policy`: columns of [T, N].

        NonFiniteError if the environment returns NaN or infinity.
        """
        lanes, pieces = self.env.num_envs, list[tuple[Tensor, ...]]()
        noise = policy.noise(self.horizon, lanes).split(self.unrolled)
        chance = self.env.noise(self.horizon).split(self.unrolled)
        if policy is not self.policy:
            self.policy, self.judge = policy, None
            self.walk = walking(policy, self.env, [self.observation, noise[0], chance[0]])
        for drawn, happened in zip(noise, chance, strict=True):
            self.observation, *piece = self.walk(self.observation, drawn, happened)
            pieces.append(tuple(piece))
        observation, action, reward, terminated, truncated, final = (torch.cat(x) for x in zip(*pieces, strict=True))
        if not (observation.isfinite().all() & reward.isfinite().all()):
            raise NonFiniteError(f"the environment returned {culprit(observation, reward)}")
        ended = terminated | truncated
        start, self.fresh = torch.cat([self.fresh.unsqueeze(0), ended[:-1]]), ended[-1]
        live = torch.ones_like(ended)
        self.episodes.add(*(x.cpu().numpy() for x in (reward, live, ended)))
        columns = dict(mask=live, start=start, reward=reward, terminated=terminated, truncated=truncated)
        batch = Batch(observation=observation, action=action, **columns)
        if self.judge is None:
            self.judge = judging(policy, self.observation, batch)
        logp, value, next_value = self.judge(self.observation, *batch.leaves())
        cut = truncated.nonzero(as_tuple=True)
        if len(cut[0]):
            with torch.no_grad():
                next_value[cut] = policy.value(final[cut])
        return batch.replace(logp=logp, value=value, next_value=next_value)

    def state_tensors(self) -> dict[str, Tensor]:
        return live_tensors(episodes=self.episodes)

    def close(self) -> None:
        """Nothing is open."""


class Together(nn.Module):
    """A policy and an environment, for a graph that looks at the tensors of both."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def walking(policy: Policy, env: TensorEnv, example: list[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """A walk of some steps as one call: (observation, noise, chance) -> the last observation, then columns [k, N]."""

    def walk(observation: Tensor, noise: Tensor, chance: Tensor) -> tuple[Tensor, ...]:
        rows = []
        for drawn, happened in zip(noise.unbind(), chance.unbind(), strict=True):
            action = policy.act(observation, drawn)
            after = env.step(action, happened)
            rows.append((observation, action, after.reward, after.terminated, after.truncated, after.final))
            observation = after.observation
        return observation, *(torch.stack(column) for column in zip(*rows, strict=True))

    if isinstance(env, nn.Module):
        return fused(Together(policy=policy, env=env), walk, example)
    return torch.no_grad()(walk)


def culprit(observation: Tensor, reward: Tensor) -> str:
    """The first value that is not finite, in words."""
    for name, column in (("observation", observation), ("reward", reward)):
        for t, lane, *_ in (~column.isfinite()).nonzero()[:1].tolist():
            return f"{name} {column[t, lane].tolist()} in lane {lane} at step {t} of the rollout"
    raise EnvFailure("a number that was not finite became finite")


class VecEnvLanes:
    """A simulator with the VecEnv interface of rsl_rl, Isaac Lab and mjlab, as a TensorEnv.

    Its `step(actions)` returns (observations, rewards, dones, extras), observations a tensor or a mapping with the
    group "policy", and extras["time_outs"] the lanes that were truncated. The interface resets ended lanes within the
    step and keeps their last observation to itself, unless extras["final_obs"] gives it: without it the observation
    before stands for it, so that a truncated episode bootstraps from one step too early.
    """

    def __init__(self, env: Any) -> None:
        self.env, self.num_envs = env, int(env.num_envs)
        self.seen = self._observed(env.get_observations())
        self.single_observation_space: gym.Space = gym.spaces.Box(-np.inf, np.inf, tuple(self.seen.shape[1:]))
        self.single_action_space: gym.Space = gym.spaces.Box(-np.inf, np.inf, (int(env.num_actions),))

    @property
    def device(self) -> torch.device:
        return self.seen.device

    def reset(self, seed: int) -> Tensor:
        """Reset; the interface knows no seed, so only simulators that draw from torch's generators resume exactly."""
        self.env.reset()
        self.seen = self._observed(self.env.get_observations())
        return self.seen

    def noise(self, steps: int) -> Tensor:
        return torch.empty(steps, 0, device=self.seen.device)

    def step(self, action: Tensor, noise: Tensor) -> Transition:
        observations, reward, dones, extras = self.env.step(action)
        before, self.seen = self.seen, self._observed(observations)
        done = dones.bool()
        truncated = extras.get("time_outs", torch.zeros_like(done)).bool() & done
        final = extras.get("final_obs")
        last = before if final is None else self._observed(final)
        ended = done.reshape(-1, *[1] * (self.seen.ndim - 1))
        return Transition(self.seen, reward.float(), done & ~truncated, truncated, torch.where(ended, last, self.seen))

    def _observed(self, observations: Any) -> Tensor:
        """The policy's group of observations."""
        if isinstance(observations, tuple):  # older versions return (observations, extras)
            observations = observations[0]
        seen = observations if isinstance(observations, Tensor) else observations["policy"]
        return seen.float()
