"""Environments for benchmarks/policies.py: what is hidden must be remembered, what is forbidden raises."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class Without(gym.ObservationWrapper):
    """Without some of the numbers that are seen."""

    def __init__(self, env: gym.Env, kept: list[int]) -> None:
        super().__init__(env)
        space: Any = env.observation_space
        self.kept = kept
        self.observation_space = gym.spaces.Box(space.low[kept], space.high[kept])

    def observation(self, observation: Any) -> np.ndarray:
        return observation[self.kept]


def cartpole_without_velocities() -> gym.Env:
    return Without(gym.make("CartPole-v1"), [0, 2])


def pendulum_without_velocity() -> gym.Env:
    return Without(gym.make("Pendulum-v1"), [0, 1])


class RepeatPrevious(gym.Env):
    """Name the card of `delay` steps ago, of four (after POPGym, Morad et al. 2023, arXiv:2303.01859).

    Cards are drawn independently, so who sees the present one alone is right a quarter of the time, whatever it does.
    """

    observation_space, action_space = gym.spaces.Discrete(4), gym.spaces.Discrete(4)

    def __init__(self, delay: int = 4, length: int = 52) -> None:
        self.delay, self.length = delay, length

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.cards = self.np_random.integers(4, size=self.length + self.delay)
        self.t = 0
        return self.cards[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        known = self.t >= self.delay
        right = known and int(action) == self.cards[self.t - self.delay]
        self.t += 1
        over = self.t == self.length + self.delay
        return self.cards[min(self.t, len(self.cards) - 1)], float(right) / self.length, over, False, {}


class Strict(gym.Wrapper):
    """Taxi that raises where an action is taken that its mask forbids."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self.allowed = info["action_mask"]
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if not self.allowed[action]:
            raise RuntimeError(f"the forbidden action {action} was taken")
        made = self.env.step(action)
        self.allowed = made[-1]["action_mask"]
        return made


def strict_taxi() -> gym.Env:
    return Strict(gym.make("Taxi-v4"))


class Dials(gym.Env):
    """Turn four dials of five marks each to what is shown, all at once; a step pays the share that is right."""

    observation_space = gym.spaces.MultiDiscrete([5] * 4)
    action_space = gym.spaces.MultiDiscrete([5] * 4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.shown = 0, self.np_random.integers(5, size=4)
        return self.shown, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        right = float((np.asarray(action) == self.shown[::-1]).mean())  # in reverse order
        self.t, self.shown = self.t + 1, self.np_random.integers(5, size=4)
        return self.shown, right / 10, False, self.t == 10, {}


class Reach(gym.Env):
    """A picture shows where, a word says which hand; both are seen as a Dict and answered with a Dict."""

    observation_space = gym.spaces.Dict(
        picture=gym.spaces.Box(0, 255, (16, 16, 1), np.uint8), word=gym.spaces.Text(5, charset="efghilrt")
    )
    action_space = gym.spaces.Dict(hand=gym.spaces.Discrete(2), to=gym.spaces.Box(-1, 1, (2,), np.float32))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        near = float(np.exp(-4 * np.square(np.asarray(action["to"]) - self.place).sum()))
        reward = near * (int(action["hand"]) == self.hand) / 10
        self.t += 1
        return self._seen(), reward, False, self.t == 10, {}

    def _seen(self) -> dict[str, Any]:
        row, column = self.np_random.integers(1, 15, size=2)
        self.hand, self.place = int(self.np_random.integers(2)), np.array([row, column]) / 7.5 - 1
        picture = np.zeros((16, 16, 1), np.uint8)
        picture[row - 1 : row + 2, column - 1 : column + 2] = 255
        return {"picture": picture, "word": ("left", "right")[self.hand]}
