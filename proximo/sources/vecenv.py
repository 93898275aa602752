"""Simulators with the VecEnv interface of rsl_rl, Isaac Lab and mjlab, as a TensorEnv."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from proximo.batch import leaves_of, with_leaves
from proximo.errors import EnvFailure
from proximo.sources.tensors import Transition

GROUPS = "policy", "actor"  # what the observations of the one who acts are called


class VecEnvLanes:
    """A simulator with rsl_rl's VecEnv interface, as a TensorEnv.

    Its `step(actions)` returns (observations, rewards, dones, extras): observations a tensor or a mapping, of which
    `group` names the part to learn from ("policy" or "actor" where it is None), which may be a mapping again, of any
    depth, and extras["time_outs"] the lanes that were truncated. Images, which are uint8, stay as they are; all else
    becomes float32. The interface resets ended lanes within the step and keeps their last observation to itself, unless
    extras["final_obs"] gives it: without it the observation before stands for it, so that a truncated episode
    bootstraps from one step too early.
    """

    def __init__(self, env: Any, group: str | None = None) -> None:
        self.env, self.group, self.num_envs = env, group, int(env.num_envs)
        self.seen = self._observed(env.get_observations())
        self.single_observation_space: gym.Space = space_of(self.seen)
        self.single_action_space: gym.Space = gym.spaces.Box(-np.inf, np.inf, (int(env.num_actions),))

    @property
    def device(self) -> torch.device:
        return leaves_of(self.seen)[0].device

    def reset(self, seed: int) -> Any:
        """Reset, where the simulator can: the interface has no `reset` of its own, and knows no seed.

        So only a simulator that has one and draws from torch's generators resumes exactly; one that has none goes on
        where it is, its open episodes counted from here.
        """
        if hasattr(self.env, "reset"):
            self.env.reset()
        self.seen = self._observed(self.env.get_observations())
        return self.seen

    def noise(self, steps: int) -> Tensor:
        return torch.empty(steps, 0, device=self.device)

    def step(self, action: Tensor, noise: Tensor) -> Transition:
        observations, reward, dones, extras = self.env.step(action)
        before, self.seen = self.seen, self._observed(observations)
        done = dones.bool()
        truncated = extras.get("time_outs", torch.zeros_like(done)).bool() & done
        final = extras.get("final_obs")
        last = before if final is None else self._observed(final)
        pairs = zip(leaves_of(last), leaves_of(self.seen), strict=True)
        ends = (torch.where(done.reshape(-1, *[1] * (here.ndim - 1)), old, here) for old, here in pairs)
        return Transition(self.seen, reward, done & ~truncated, truncated, with_leaves(self.seen, ends))

    def _observed(self, observations: Any) -> Any:
        """A copy of the group of observations to learn from; simulators go on writing into their own."""
        if isinstance(observations, tuple):  # older versions return (observations, extras)
            observations = observations[0]
        if isinstance(observations, Tensor):
            return copied(observations)
        there = list(observations.keys())
        for name in (self.group,) if self.group else GROUPS:
            if name in there:
                return copied(observations[name])
        wanted, known = self.group or " or ".join(GROUPS), ", ".join(map(str, there))
        raise EnvFailure(f"the observations have no group {wanted}, but {known}: name one as `group`")


def copied(observation: Any) -> Any:
    """A tensor, or a mapping of some, as the policy takes it: a copy, of bytes for images and else of float32."""
    if not isinstance(observation, Tensor):
        return {str(key): copied(observation[key]) for key in sorted(observation.keys())}
    return observation.to(torch.uint8 if is_image(observation) else torch.float32, copy=True)


def is_image(x: Tensor) -> bool:
    """Whether a tensor [N, ...] shows images: bytes in two dimensions or more."""
    return x.dtype is torch.uint8 and x.dim() > 2


def space_of(observation: Any) -> gym.Space:
    """The space of a lane's observation, from those of all."""
    if isinstance(observation, dict):
        return gym.spaces.Dict({key: space_of(part) for key, part in observation.items()})
    shape = tuple(observation.shape[1:])
    if is_image(observation):
        return gym.spaces.Box(0, 255, shape, np.uint8)
    return gym.spaces.Box(-np.inf, np.inf, shape)
