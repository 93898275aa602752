"""One lane of a vector environment as a single environment: for those that exist as vectors alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from proximo.batch import tree_map


class OneLane(gym.Env):
    """A Gymnasium environment over `make(seed)`, a vector environment of one lane; of `Games`, one whole game.

    A reset with a seed makes the lane anew, since some take their seed only when they are made.
    """

    def __init__(self, make: Callable[[int], gym.vector.VectorEnv]) -> None:
        self.make, self.lane = make, make(0)
        self.observation_space, self.action_space = self.lane.single_observation_space, self.lane.single_action_space
        self.metadata, self.render_mode = {"render_modes": ["rgb_array"], "render_fps": 30}, self.lane.render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.lane.close()
            self.lane = self.make(seed)
        observation, _ = self.lane.reset(seed=seed)
        return tree_map(only, observation), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        actions = tree_map(lambda x: np.asarray(x)[None], action)
        observation, reward, terminated, truncated, info = self.lane.step(actions)
        over = info.get("over", terminated)  # where only a life ended the lane goes on
        return tree_map(only, observation), float(reward[0]), bool(terminated[0] & over[0]), bool(truncated[0]), {}

    def render(self) -> Any:
        frames: Any = self.lane.render()
        return np.asarray(frames[0])

    def close(self) -> None:
        self.lane.close()


def only(column: np.ndarray) -> np.ndarray:
    """A copy of the one row: vector environments may write the next into the same memory."""
    return np.array(column[0])
