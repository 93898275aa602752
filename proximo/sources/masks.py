"""Which actions are allowed, as part of what is seen: the key `action_mask` of a Dict observation.

That is where policies look for it. Environments that say it elsewhere, in `info["action_mask"]` or by a method
`action_masks()`, are wrapped, so that lanes, workers and evaluation all pass it on like any other observation.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from proximo.errors import EnvFailure
from proximo.observations import MASK, choices


def says_masks(env: gym.Env) -> str | None:
    """Where an environment says which actions are allowed, if not in its observation: "method", "info" or nowhere.

    It may be reset to find out; one that cannot be is complained of where it is used.
    """
    shown = isinstance(env.observation_space, gym.spaces.Dict) and MASK in env.observation_space.spaces
    if shown or choices(env.action_space) is None:
        return None
    if callable(getattr(env.unwrapped, "action_masks", None)):
        return "method"
    try:
        return "info" if MASK in env.reset(seed=0)[1] else None
    except EnvFailure:
        return None


def allowed_action(space: gym.Space, observation: Any) -> Any:
    """A random action, one that the observation's mask allows where it has one."""
    parts = choices(space)
    if parts is None or not isinstance(observation, dict) or MASK not in observation:
        return space.sample()
    masks = np.split(np.asarray(observation[MASK], np.int8), np.cumsum(parts)[:-1])
    if isinstance(space, gym.spaces.Discrete):
        return space.sample(mask=masks[0])
    return space.sample(mask=tuple(masks)) if len(space.shape or ()) == 1 else space.sample()


class ShowsMask(gym.Wrapper):
    """Puts the mask into the observation: beside its other keys, or beside `observation` if it had none."""

    def __init__(self, env: gym.Env, source: str) -> None:
        super().__init__(env)
        self.source, self.count = source, sum(choices(env.action_space) or [])
        inner, mask = env.observation_space, gym.spaces.MultiBinary(self.count)
        parts = dict(inner.spaces) if isinstance(inner, gym.spaces.Dict) else {"observation": inner}
        self.nested = not isinstance(inner, gym.spaces.Dict)
        self.observation_space = gym.spaces.Dict({**parts, MASK: mask})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._shown(observation, info), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if (terminated or truncated) and self.source == "info" and MASK not in info:
            info = {**info, MASK: np.zeros(self.count)}  # nobody acts there
        return self._shown(observation, info), reward, terminated, truncated, info

    def _shown(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        owner: Any = self.env.unwrapped
        said = owner.action_masks() if self.source == "method" else info.get(MASK)
        parts = said if isinstance(said, (list, tuple)) and np.ndim(said[0]) else [said]
        mask = np.concatenate([np.asarray(part).reshape(-1) for part in parts]) if said is not None else np.zeros(0)
        if mask.shape != (self.count,):
            where = "action_masks()" if self.source == "method" else 'info["action_mask"]'
            raise EnvFailure(
                f"the environment's {where} is {said!r}: it must say of {self.count} actions which may be taken"
            )
        rest = {"observation": observation} if self.nested else observation
        return {**rest, MASK: (mask != 0).astype(np.int8)}
