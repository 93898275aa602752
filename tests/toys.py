"""Environments whose every value is known, and one that does wrong what it is told to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from proximo.batch import Batch, tree_map
from proximo.policy import Policy
from proximo.sources.tensors import Transition

GAMMA = 0.9


class Corridor(gym.Env):
    """A walk along positions 0, 1, 2, …: reward 1 a step; terminated on reaching `end`, truncated after `limit` steps.

    Episode k of an environment starts at position k % 3, so that no two episodes look alike. Truncation says nothing
    of the state: V(s) = 1 + γ + … + γ^(end − s − 1) wherever one stands, 0 at the end.
    """

    def __init__(self, end: int = 7, limit: int = 5) -> None:
        self.observation_space = gym.spaces.Box(-1, 100, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.end, self.limit, self.episode = end, limit, -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.taken = self.episode + 1, 0
        self.position = self.episode % 3
        return np.array([self.position], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.position, self.taken = self.position + 1, self.taken + 1
        terminated, truncated = self.position == self.end, self.taken == self.limit
        return np.array([self.position], np.float32), 1.0, terminated, truncated, {}


def corridor_value(position: Any, end: int = 7) -> Any:
    """V of the corridor under any policy, in closed form."""
    return (1 - GAMMA ** (end - position)) / (1 - GAMMA)


class Corridors(nn.Module):
    """The same in tensors, a lane for each limit. `assign` gives its buffers new tensors, `shared` returns its own."""

    position: Tensor
    steps: Tensor
    episode: Tensor
    limits: Tensor
    seen: Tensor

    def __init__(self, limits: Sequence[int], end: int = 7, assign: bool = False, shared: bool = False) -> None:
        super().__init__()
        self.num_envs, self.end, self.assign, self.shared = len(limits), end, assign, shared
        self.single_observation_space: gym.Space = gym.spaces.Box(-1, 100, (1,), np.float32)
        self.single_action_space: gym.Space = gym.spaces.Discrete(2)
        for name in ("position", "steps", "episode"):
            self.register_buffer(name, torch.zeros(len(limits), dtype=torch.int64))
        self.register_buffer("limits", torch.tensor(limits))
        self.register_buffer("seen", torch.zeros(len(limits), 1))

    @property
    def device(self) -> torch.device:
        return self.position.device

    def put(self, **values: Tensor) -> None:
        for name, value in values.items():
            if self.assign:
                setattr(self, name, value)
            else:
                getattr(self, name).copy_(value)

    def reset(self, seed: int) -> Tensor:
        zero = torch.zeros_like(self.position)
        self.put(position=zero, steps=zero.clone(), episode=zero.clone(), seen=torch.zeros_like(self.seen))
        return self.seen

    def noise(self, steps: int) -> Tensor:
        return torch.empty(steps, 0, device=self.position.device)

    def step(self, action: Tensor, noise: Tensor) -> Transition:
        reached, steps = self.position + 1, self.steps + 1
        terminated, truncated = reached == self.end, steps == self.limits
        ended = terminated | truncated
        episode = self.episode + ended
        position = torch.where(ended, episode % 3, reached)
        seen = position.float().unsqueeze(-1)
        self.put(position=position, steps=torch.where(ended, 0, steps), episode=episode, seen=seen)
        reward = torch.ones_like(position, dtype=torch.float32)
        final = reached.float().unsqueeze(-1)
        action.zero_()  # it may do as it likes with what it was given
        return Transition(self.seen if self.shared else seen, reward, terminated, truncated, final)


class Recall(gym.Env):
    """One step an episode: the observation is ±1, the reward is 1 for the action that names its sign, else 0.

    A tiny problem with a known optimum, 1, that every algorithm must learn within a few thousand steps.
    """

    def __init__(self, continuous: bool = False) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (1,)) if continuous else gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.sign = int(self.np_random.integers(2)) * 2 - 1
        return np.array([self.sign], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        chosen = int(np.asarray(action).reshape(-1)[0] > 0) * 2 - 1
        return np.array([self.sign], np.float32), float(chosen == self.sign), True, False, {}


class RecallContinuous(Recall):
    """The same with a Box action: its sign counts."""

    def __init__(self) -> None:
        super().__init__(continuous=True)


class Toy(gym.Env):
    """A user's ten lines: any action space, five observations, twenty steps."""

    def __init__(self, action_space: gym.Space | None = None, length: int = 20) -> None:
        self.observation_space, self.length = gym.spaces.Box(-1, 1, (5,)), length
        self.action_space = action_space or gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = self.length
        return self.np_random.uniform(-1, 1, 5).astype(np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), repr(action)
        self.left -= 1
        return self.np_random.uniform(-1, 1, 5).astype(np.float32), 1.0, self.left == 0, False, {}

    def render(self) -> np.ndarray:
        return np.full((32, 32, 3), self.left % 256, np.uint8)


class Faulty(gym.Env):
    """Three numbers, two actions, episodes of ten steps; `reset` and `step` say what it returns instead."""

    def __init__(self, reset: Any = None, step: Any = None, length: int = 10, **spaces: gym.Space) -> None:
        self.observation_space = spaces.get("observation", gym.spaces.Box(-1, 1, (3,), np.float32))
        self.action_space = spaces.get("action", gym.spaces.Discrete(2))
        self.bad_reset, self.bad_step, self.length = reset, step, length

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.taken, made = 0, (np.zeros(3, np.float32), {})
        return made if self.bad_reset is None else self.bad_reset(*made)

    def step(self, action: Any) -> Any:
        self.taken += 1
        made = np.zeros(3, np.float32), 1.0, self.taken >= self.length, False, {}
        return made if self.bad_step is None or self.taken < 5 else self.bad_step(*made)

    def render(self) -> None: ...


def breaks_down(*made: Any) -> Any:
    raise RuntimeError("the simulator\nis gone")


@torch.no_grad()
def remembered(policy: Policy, batch: Batch) -> Batch:
    """The batch with the column `old` that a source would give it: the policy's distributions of now, copied."""
    return batch.replace(old=tree_map(torch.clone, policy.evaluate(batch).distribution))
