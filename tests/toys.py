"""Environments whose every value is known."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

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
