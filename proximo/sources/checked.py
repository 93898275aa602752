"""A wrapper that holds one environment to the interface it promised."""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from proximo.errors import EnvFailure, UnsupportedSpace
from proximo.observations import MASK
from proximo.sources.buffers import Leaf, stored_leaves, taken


class Checked(gym.Wrapper):
    """Raises EnvFailure, in one line, for what would otherwise fail far from its cause.

    An observation must be an array of its space's shape, and of a dtype that the space's can hold (float64 for a
    float32 space will do; object or float for integers will not), and so each leaf of a Dict or Tuple; a reward one
    number; the ends booleans. Once lanes are side by side it is too late: what does not fit was cast or broadcast.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        for name in ("observation_space", "action_space"):
            if not isinstance(getattr(env, name, None), gym.Space):
                raise EnvFailure(f"the environment has no {name}: give it one, a gymnasium.spaces.Space")
        self._promises = promises(env.observation_space)

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
        for promise in self._promises:
            promise.hold(observation, what)


class Promise:
    """What a leaf of an observation space says of it."""

    def __init__(self, leaf: Leaf) -> None:
        self.leaf, self.shape = leaf, leaf.space.shape
        self.dtype: Any = leaf.space.dtype
        self.known = {self.dtype}  # the dtypes that need no second look
        self.array = isinstance(leaf.space, gym.spaces.Box) and not leaf.path  # what gymnasium takes as nothing else

    def hold(self, observation: Any, what: str) -> None:
        """EnvFailure where what reset() or step() returned is not what was said."""
        value = taken(observation, self.leaf) if self.leaf.path else observation
        if type(value) is np.ndarray and value.dtype in self.known and value.shape == self.shape:
            return
        if isinstance(self.leaf.space, gym.spaces.Text):
            if not isinstance(value, str):
                raise self.broken(what, f"a {type(value).__name__}", "a text")
            return
        if not self.array and not hasattr(value, "dtype"):
            value = as_array(value)  # of a number or a list
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
        if shape != self.shape:
            raise self.broken(what, f"a {type(value).__name__}" if shape is None else f"shape {shape}", self.shape)
        if dtype not in self.known:
            if not isinstance(dtype, np.dtype) or not np.can_cast(dtype, self.dtype, "same_kind"):
                raise self.broken(what, f"dtype {dtype}", self.dtype)
            if np.can_cast(dtype, self.dtype) or self.dtype.kind not in "iu":
                self.known.add(dtype)
            elif not np.array_equal(value, value.astype(self.dtype)):
                raise self.broken(what, f"numbers that {self.dtype} has not", self.dtype)

    def broken(self, what: str, got: str, said: Any) -> EnvFailure:
        where = self.leaf.where
        return EnvFailure(f"the environment's {what}() returned an observation{where} of {got}, not {said} as declared")


def promises(space: gym.Space) -> list[Promise]:
    """Of every leaf but those of a mask that is said part by part, which may leave parts out."""
    with contextlib.suppress(UnsupportedSpace):  # which is complained of where it is used
        return [Promise(leaf) for leaf in stored_leaves(space) if leaf.path[:1] != (MASK,) or len(leaf.path) == 1]
    return []


def as_array(value: Any) -> Any:
    """An array of it, or itself where there is none."""
    try:
        return np.asarray(value)
    except ValueError:  # lists of different lengths
        return value
