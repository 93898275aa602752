"""EnvPool's C++ threads under Gymnasium's vector interface."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np

from proximo.errors import ConfigError, MissingExtra, install, unknown
from proximo.sources.atari import learning


def require_envpool(env: Any) -> None:
    """Raises a ProximoError that says what to do where EnvPool cannot serve `env`."""
    if importlib.util.find_spec("envpool") is None:
        raise MissingExtra(f"the envpool backend is not installed: {install('envpool')}")
    if not isinstance(env, str):
        raise ConfigError("EnvPool has only environments of its own: give an id, or use the sync or async backend")
    if env not in envpool_ids():
        raise unknown("EnvPool environment", env, envpool_ids(), "use the sync or async backend")


def envpool_ids() -> list[str]:
    """Every id EnvPool has; none where it is not installed."""
    if importlib.util.find_spec("envpool") is None:
        return []
    return list(envpool().list_all_envs())


@cache
def envpool() -> Any:
    """EnvPool's module, whose families are loaded when one of their environments is made.

    Importing it the usual way loads the libraries of all families (and, through Jumanji's, matplotlib): 108 MB and
    0.7 s. Only their lists of ids are needed. So the families' packages are empty while the lists are read, and are
    found anew when they are asked for, by us or by anyone else.
    """
    emptied = {} if "envpool" in sys.modules else empty_families()
    sys.modules |= emptied
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            import envpool as module

            return module
    finally:
        for name in emptied:
            del sys.modules[name]


def empty_families() -> dict[str, ModuleType]:
    """{name: a package that was not run} of those parts of EnvPool that list environments."""
    found = importlib.util.find_spec("envpool")
    root, empty = Path(str(found and found.origin)).parent, dict[str, ModuleType]()
    for family in sorted(listing.parent for listing in root.rglob("*/registration.py")):
        name = ".".join(("envpool", *family.relative_to(root).parts))
        spec = importlib.util.spec_from_file_location(
            name, family / "__init__.py", submodule_search_locations=[str(family)]
        )
        if spec is not None:
            empty[name] = importlib.util.module_from_spec(spec)
    return empty


def envpool_serves(name: str, one: gym.Env, limit: int | None, options: dict[str, Any]) -> bool:
    """Whether EnvPool has this id with the spaces that this environment has."""
    if name not in envpool_ids():
        return False
    lanes = envpool_lanes(name, 1, 0, limit, options)
    seen, act = lanes.single_observation_space, lanes.single_action_space
    lanes.close()
    return alike(seen, one.observation_space) and alike(act, one.action_space)


def alike(a: gym.Space, b: gym.Space) -> bool:
    """Whether what is of one space serves as being of the other; bounds aside, which EnvPool often leaves out."""
    if isinstance(a, gym.spaces.Dict) and isinstance(b, gym.spaces.Dict):
        return a.spaces.keys() == b.spaces.keys() and all(alike(part, b[key]) for key, part in a.spaces.items())
    if isinstance(a, gym.spaces.Tuple) and isinstance(b, gym.spaces.Tuple):
        return len(a) == len(b) and all(map(alike, a.spaces, b.spaces))
    if isinstance(a, gym.spaces.Box) and isinstance(b, gym.spaces.Box):
        return a.shape == b.shape and (a.dtype == np.uint8) == (b.dtype == np.uint8)
    return a == b


def family(name: str) -> str:
    """The part of EnvPool that an id belongs to."""
    return envpool().registration.registry.specs[name][0]


def heeds_no_limit(name: str) -> bool:
    """Whether EnvPool's lanes of this id go on after `max_episode_steps`, as its driving worlds do."""
    return family(name) == "envpool.highway"


def envpool_lanes(
    name: str, lanes: int, seed: int, limit: int | None = None, options: dict[str, Any] | None = None
) -> gym.vector.VectorEnv:
    """EnvPool's lanes; of Atari, as games to learn from where the options ask for that."""
    atari = family(name) == "envpool.atari"
    make = lambda rest: EnvPoolLanes(name, lanes, seed, limit, rest)  # noqa: E731
    return learning(options or {}, make) if atari else make(options or {})


class EnvPoolLanes(gym.vector.VectorEnv):
    """EnvPool under Gymnasium's vector interface. Its autoreset is NEXT_STEP; its seed is given when it is made."""

    def __init__(
        self, name: str, lanes: int, seed: int, limit: int | None = None, options: dict[str, Any] | None = None
    ) -> None:
        extra: dict[str, Any] = (options or {}) | ({} if limit is None else {"max_episode_steps": limit})
        self.render_mode = extra.get("render_mode")
        threads = extra.pop("num_threads", None) or min(lanes, os.cpu_count() or 1)
        size = {"num_envs": lanes, "num_threads": threads, "seed": seed % (2**31 - lanes)}
        with warnings.catch_warnings():  # of the precision of its bounds
            warnings.simplefilter("ignore")
            try:
                self.pool: Any = envpool().make(name, env_type="gymnasium", **size, **extra)
            except Exception as error:
                known = envpool().make_spec(name).config._fields
                for option in extra.keys() - set(known) - {"render_mode"}:
                    raise unknown(f"option of EnvPool's {name}", option, known) from None
                raise ConfigError(f"EnvPool cannot make {name} with {size | extra}: {error}") from error
            self.single_observation_space = self.pool.observation_space
            self.single_action_space = self.pool.action_space
        self.num_envs = lanes
        self.metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, lanes)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, lanes)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self.pool.reset()

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        return self.pool.step(actions)

    def step_async(self, actions: Any) -> None:
        self.pool.send(actions)

    def step_wait(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        return self.pool.recv()

    def render(self) -> Any:
        return self.pool.render()

    def close_extras(self, **kwargs: Any) -> None:
        self.pool.close()
