"""Which actions are allowed, as part of what is seen: the key `action_mask` of a Dict observation.

That is where policies look for it: a 1 or 0 for each option, those of all choices of an action in a row. Environments
that say it elsewhere, in `info["action_mask"]` or by a method `action_masks()`, or part by part, like the action, are
wrapped, so that lanes, workers and evaluation all pass it on like any other observation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from proximo.errors import EnvFailure, UnsupportedSpace
from proximo.observations import MASK, MASKABLE, choices, has_mask, space_map
from proximo.sources.buffers import NO_OPTION

METHOD = "action_masks"
PARTS = gym.spaces.Dict, gym.spaces.Tuple
PLACES = {"method": f"{METHOD}()", "info": f'info["{MASK}"]', "observation": f'observation["{MASK}"]'}


def says_masks(env: gym.Env) -> str | None:
    """Where an environment says which actions are allowed, if not as it is kept: a key of PLACES, or nowhere.

    It may be reset to find out; one that cannot be is complained of where it is used. UnsupportedSpace where its
    actions have no masks.
    """
    space: Any = env.observation_space
    if has_mask(space):
        found = "observation" if isinstance(space[MASK], PARTS) else None
    elif env.has_wrapper_attr(METHOD) and callable(env.get_wrapper_attr(METHOD)):
        found = "method"
    else:
        try:
            found = "info" if MASK in env.reset(seed=0)[1] else None
        except EnvFailure:
            found = None
    if found is not None and not choices(env.action_space):
        raise UnsupportedSpace(
            f"the environment says by {PLACES[found]} what is allowed, but its action space is {env.action_space}: "
            f"{MASKABLE}; leave it out, or make these actions choices"
        )
    return found


def allowed_action(space: gym.Space, observation: Any) -> Any:
    """A random action, one that the observation's mask allows where it has one; EnvFailure where that is none."""
    if not isinstance(observation, dict) or MASK not in observation:
        return space.sample()
    masks = iter(np.split(np.asarray(observation[MASK]), np.cumsum(choices(space))[:-1]))

    def drawn(path: Any, part: Any) -> Any:
        if not choices(part):
            return part.sample()
        options = [np.flatnonzero(next(masks)) for _ in choices(part)]
        if not all(map(len, options)):
            raise EnvFailure(f"no action is allowed: {NO_OPTION}")
        chosen = np.array([part.np_random.choice(each) for each in options], part.dtype).reshape(part.shape)
        return (chosen + part.start)[()]

    return space_map(drawn, space)


def in_a_row(said: Any, space: gym.Space, place: str = "") -> np.ndarray:
    """The mask [sum of options] of an action, from that or a dict or tuple like the action; ValueError for all else.

    Within a dict or tuple None, or a key that is not there, allows everything. The error complains of what stands at
    `place`, "['move']" within a dict.
    """
    if said is None:
        return np.ones(sum(choices(space)), np.int8)
    if isinstance(space, gym.spaces.Dict) and isinstance(said, dict):
        if strange := said.keys() - space.spaces.keys():
            raise ValueError(f"{place} has {min(map(repr, strange))}, a part that the action has not")
        parts = [(said.get(key), part, f"{place}[{key!r}]") for key, part in space.spaces.items()]
    elif isinstance(space, gym.spaces.Tuple) and isinstance(said, list | tuple) and len(said) == len(space.spaces):
        parts = [(each, part, f"{place}[{i}]") for i, (each, part) in enumerate(zip(said, space.spaces, strict=True))]
    else:
        several = isinstance(said, list | tuple) and len(said) > 0 and np.ndim(said[0]) > 0
        mask = np.concatenate([np.reshape(part, -1) for part in (said if several else [said])])
        count = sum(choices(space))
        if mask.shape != (count,) or not np.isin(mask, (0, 1)).all():
            parts_too = ", or so part by part like the action" if isinstance(space, PARTS) else ""
            must = f"it must say of {count} actions which may be taken, 1 or 0 for each{parts_too}"
            raise ValueError(f"{place} is {said!r}: {must}")
        return mask.astype(np.int8)
    return np.concatenate([in_a_row(*part) for part in parts])


def in_parts(said: Any, shape: tuple[int, ...]) -> bool:
    """Whether a mask is said part by part, like the action, and neither in a row of this shape nor as several rows."""

    def of_a_row(each: Any) -> bool:
        """Whether it is a number of a row, or a row of several."""
        try:
            return each is not None and not isinstance(each, dict) and np.shape(each) in ((), shape)
        except ValueError:  # lists of different lengths
            return False

    return isinstance(said, dict | tuple) or (isinstance(said, list) and not all(map(of_a_row, said)))


class ShowsMask(gym.Wrapper):
    """Puts the mask into the observation: beside its other keys, or beside `observation` if it had none."""

    def __init__(self, env: gym.Env, source: str) -> None:
        super().__init__(env)
        self.source, self.count = source, sum(choices(env.action_space))
        inner, mask = env.observation_space, gym.spaces.MultiBinary(self.count)
        parts = dict(inner.spaces) if isinstance(inner, gym.spaces.Dict) else {"observation": inner}
        self.nested = not isinstance(inner, gym.spaces.Dict)
        self.observation_space = gym.spaces.Dict({**parts, MASK: mask})
        says: dict[str, Callable[[Any, Any], Any]] = {
            "method": lambda observation, info: env.get_wrapper_attr(METHOD)(),
            "info": lambda observation, info: info.get(MASK),
            "observation": lambda observation, info: observation[MASK],
        }
        self.says = says[source]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._shown(observation, info), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if (terminated or truncated) and self.source == "info" and MASK not in info:
            info = {**info, MASK: np.zeros(self.count)}  # nobody acts there
        return self._shown(observation, info), reward, terminated, truncated, info

    def _shown(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        where, said = f"the environment's {PLACES[self.source]}", None
        try:
            said = self.says(observation, info)
        except Exception as error:
            raise EnvFailure(f"{where} raised {type(error).__name__}: {error}") from error
        try:
            mask = in_a_row(np.zeros(0) if said is None else said, self.env.action_space)
        except ValueError as error:
            raise EnvFailure(f"{where}{error}") from None
        rest = {"observation": observation} if self.nested else observation
        return {**rest, MASK: mask}
