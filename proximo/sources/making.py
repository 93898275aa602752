"""From an environment's name or maker to single, checked environments."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym

from proximo.errors import ConfigError, EnvFailure, MissingExtra, install, unknown
from proximo.sources.atari import ALE, LIVES, SIGNS, ale_lanes, register_games, without
from proximo.sources.checked import Checked
from proximo.sources.envpool import envpool_ids, envpool_lanes
from proximo.sources.masks import ShowsMask, says_masks
from proximo.sources.onelane import OneLane
from proximo.sources.tensors import TensorEnv

MakeEnv = Callable[[], gym.Env]
EnvLike = str | MakeEnv | gym.vector.VectorEnv | TensorEnv
MANY = gym.vector.VectorEnv, TensorEnv  # lanes that the caller made
EXTRAS = {"box2d": "box2d", "mujoco": "mujoco", "pygame": "classic"}  # a word of Gymnasium's complaint: our extra


def name_of(env: EnvLike) -> str:
    return env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__)


def single(env: str | MakeEnv, max_episode_steps: int | None = None, **options: Any) -> MakeEnv:
    """A function that makes one checked environment from an id or a maker, with whole games for episodes."""

    def make_one() -> gym.Env:
        if "masks" not in known:
            probe = limited()
            known["masks"] = says_masks(probe)
            probe.close()
        return limited() if known["masks"] is None else ShowsMask(limited(), known["masks"])

    known = dict[str, Any]()  # of the environment, once one was made

    def limited() -> gym.Env:
        if isinstance(env, str):
            return Checked(made_by_name(env, max_episode_steps, options))
        elif not callable(env):
            raise ConfigError(f"{env!r} makes no environment: pass an id, the class, or a function that makes one")
        else:
            try:
                made = env(**options)
            except Exception as error:
                raise EnvFailure(f"making the environment raised {type(error).__name__}: {error}") from error
            if not isinstance(made, gym.Env):
                advice = ": pass it instead of its maker" if isinstance(made, MANY) else ""
                raise ConfigError(f"the maker returned a {type(made).__name__}, not a gymnasium.Env{advice}")
        checked = Checked(made)
        return checked if max_episode_steps is None else gym.wrappers.TimeLimit(checked, max_episode_steps)

    return make_one


def made_by_name(name: str, limit: int | None, options: dict[str, Any]) -> gym.Env:
    """One environment; of those that exist as vectors alone, one lane."""
    register_games(name)
    if name.startswith(ALE) and name in gym.registry:
        game = without(options, *SIGNS, LIVES)
        fires = options.get(LIVES, False)  # as it was learned
        return guarded(name, lambda: OneLane(lambda seed: ale_lanes(name, 1, game, limit, fires)))
    if envpool_alone(name):
        game = without(options, *SIGNS)  # life by life, as it was learned: each begins with the fire button
        one = OneLane(lambda seed: envpool_lanes(name, 1, seed, limit, game))
        return one if limit is None else gym.wrappers.TimeLimit(one, limit)  # not all of them heed theirs
    with beside(name):
        return guarded(name, lambda: gym.make(name, disable_env_checker=True, max_episode_steps=limit, **options))


@contextmanager
def beside(name: str) -> Iterator[None]:
    """A block in which the module of module:Id is found in the current folder too, after all that is installed.

    For that alone: a folder that somebody else filled may hold modules of any name.
    """
    here = [os.getcwd()] if ":" in name and os.getcwd() not in sys.path else []
    sys.path += here
    try:
        yield
    finally:
        for path in here:
            sys.path.remove(path)


def envpool_alone(name: str) -> bool:
    """Whether an id is EnvPool's and not Gymnasium's."""
    return name not in gym.registry and ":" not in name and name in envpool_ids()


def guarded(name: str, make: MakeEnv) -> gym.Env:
    """What `make` makes, with errors that say what to install or correct."""
    try:
        return make()
    except gym.error.DependencyNotInstalled as error:
        extra = next((extra for word, extra in EXTRAS.items() if word in str(error).lower()), None)
        advice = install(extra) if extra else str(error)
        raise MissingExtra(f"{name} needs a package that is not installed: {advice}") from None
    except ModuleNotFoundError as error:
        module = error.name or name.partition(":")[0]
        where = "neither installed nor in this folder" if ":" in name else "not installed"
        raise MissingExtra(f"{name} needs the module {module!r}, which is {where}") from None
    except gym.error.UnregisteredEnv as error:
        if name.partition(":")[2]:
            raise ConfigError(f"{name}: {error}") from None
        raise unknown("environment", name, gym.registry, "`proximo list` shows them") from None
    except gym.error.Error as error:
        raise ConfigError(f"{name}: {error}") from None
    except Exception as error:
        if strange := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
            raise ConfigError(f"{name} has no option {strange[1]}") from None
        raise EnvFailure(f"making {name} raised {type(error).__name__}: {error}") from error


def has_own_vector(env: EnvLike, one: gym.Env) -> bool:
    """Whether a vector environment of its own can step the lanes of an environment, of which `one` is one.

    It knows nothing of masks, which single ones show as part of what is seen.
    """
    return isinstance(env, str) and names_a_vector(env) and not isinstance(one, ShowsMask)


def names_a_vector(name: str) -> bool:
    """Whether an id names a vector environment beside the single one."""
    spec = gym.registry.get(name)
    return spec is not None and spec.vector_entry_point is not None and not spec.additional_wrappers
