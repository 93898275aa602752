"""A wrapper that holds one environment to the interface it promised."""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from proximo.errors import EnvFailure


class Checked(gym.Wrapper):
    """Raises EnvFailure, in one line, for what would otherwise fail far from its cause.

    An observation must be an array of its space's shape, and of a dtype that the space's can hold (float64 for a
    float32 space will do; object or float for integers will not); a reward one number; the ends booleans.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        for name in ("observation_space", "action_space"):
            if not isinstance(getattr(env, name, None), gym.Space):
                raise EnvFailure(f"the environment has no {name}: give it one, a gymnasium.spaces.Space")
        space = env.observation_space if isinstance(env.observation_space, gym.spaces.Box) else None
        self._shape, self._dtype = (space.shape, space.dtype) if space is not None else (None, None)
        self._good_dtypes = {self._dtype}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        made = self._run("reset", lambda: self.env.reset(seed=seed, options=options))
        if not isinstance(made, tuple) or len(made) != 2:
            raise EnvFailure("the environment's reset() must return (observation, info)")
        self._check(made[0], "reset")
        return made

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        made = self._run("step", lambda: self.env.step(action))
        if not isinstance(made, tuple) or len(made) != 5:
            raise EnvFailure("the environment's step() must return (observation, reward, terminated, truncated, info)")
        observation, reward, terminated, truncated, info = made
        self._check(observation, "step")
        if not isinstance(reward, numbers.Real) and getattr(reward, "shape", None) != ():
            raise EnvFailure(f"the environment's step() returned the reward {reward!r}, not one number")
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(flag, bool | np.bool_ | int):
                raise EnvFailure(f"the environment's step() returned {name} = {flag!r}, not a bool")
        if not isinstance(info, dict):
            raise EnvFailure(f"the environment's step() returned info = {info!r}, not a dict")
        return made

    def close(self) -> None:
        with contextlib.suppress(Exception):  # nothing that was learned depends on it
            self.env.close()

    def _run(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            raise EnvFailure(f"the environment's {what}() raised {type(error).__name__}: {error}") from error

    def _check(self, observation: Any, what: str) -> None:
        if self._shape is None or self._dtype is None:
            return  # no arrays: checked where the leaves are known
        shape, dtype = getattr(observation, "shape", None), getattr(observation, "dtype", None)
        if shape != self._shape:
            got = f"shape {shape}" if shape is not None else f"a {type(observation).__name__}"
            raise EnvFailure(
                f"the environment's {what}() returned an observation of {got}, not {self._shape} as declared"
            )
        if dtype not in self._good_dtypes:
            if dtype is None or not np.can_cast(dtype, self._dtype, "same_kind"):
                got = f"dtype {dtype}, not {self._dtype} as declared"
                raise EnvFailure(f"the environment's {what}() returned an observation of {got}")
            self._good_dtypes.add(dtype)
