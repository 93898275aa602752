"""From an environment's name, maker or vector environment to lanes: Gymnasium in process or in workers, EnvPool."""

from __future__ import annotations

import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector.async_vector_env import AsyncState

from proximo import ranks
from proximo.errors import ConfigError, unknown
from proximo.observations import MASK, has_mask
from proximo.sources.atari import ALE, ale_lanes
from proximo.sources.cartpole import CartPole
from proximo.sources.contract import must_live_in_tensors
from proximo.sources.envpool import envpool_lanes, envpool_serves, heeds_no_limit, require_envpool
from proximo.sources.envs import MakeEnvs
from proximo.sources.making import MANY, EnvLike, MakeEnv, envpool_alone, has_own_vector, name_of, single
from proximo.sources.masks import METHOD, allowed_action
from proximo.sources.tensors import TensorEnv

IN_TENSORS: dict[str, Callable[..., TensorEnv]] = {"CartPole-v1": CartPole}

BACKENDS = {
    "sync": "in this process: Gymnasium's own vector environment where it has one, else one lane after the other",
    "async": "one worker process a lane, observations in shared memory",
    "envpool": "EnvPool's C++ threads, for the ids it has",
    "tensor": f"tensors on the policy's device, in one graph with the policy: {', '.join(IN_TENSORS)}",
}
IN_GRAPH = "lanes in tensors step with the policy"
SLOW_STEP = 1e-3  # seconds of one environment's step from which a worker process a lane pays for its messages
GRACE = 60  # seconds
PATIENCE = 5  # seconds, for a step under way
FEW_LANES = 4  # below this EnvPool's wake-ups cost more than its threads save (docs/architecture.md has the figures)


@dataclass(frozen=True)
class Lanes:
    """How to build the lanes of one run, and why this way."""

    make: Callable[[int], Any]
    observation_space: gym.Space
    action_space: gym.Space
    backend: str
    reason: str
    episode_limit: int | None = None  # steps after which an episode is truncated, where that is known
    half: Callable[[int], Any] | None = None  # how to build half of them, where they step while somebody waits
    whole: str = "lanes that were passed are stepped together"  # why there is no half
    in_tensors: bool = False


def lanes_for(
    env: EnvLike,
    lanes: int,
    backend: str = "auto",
    max_episode_steps: int | None = None,
    device: str = "cpu",
    options: dict[str, Any] | None = None,
) -> Lanes:
    """Choose a backend and check the environment. Raises a ProximoError that says what to do."""
    options = options or {}
    if isinstance(env, MANY) and (max_episode_steps is not None or options):
        what = "env_options" if options else "max_episode_steps"
        raise ConfigError(f"{what} is for environments that are made here: settle it where you make your lanes")
    if isinstance(env, TensorEnv):
        spaces = env.single_observation_space, env.single_action_space
        must_live_in_tensors(*spaces)
        return Lanes(lambda seed: env, *spaces, "yours", "the tensor environment that was passed", in_tensors=True)
    if isinstance(env, gym.vector.VectorEnv):
        spaces = env.single_observation_space, env.single_action_space
        return Lanes(lambda seed: Borrowed(env), *spaces, "yours", "the vector environment that was passed")
    if backend not in ("auto", *BACKENDS):
        raise unknown("backend", backend, ("auto", *BACKENDS))
    if backend == "envpool":
        require_envpool(env)
    if backend == "tensor":
        if options:
            raise ConfigError("environments in tensors take no env_options: leave them out, or the tensor backend")
        return tensor_lanes(env, lanes, max_episode_steps, device)
    make_one = single(env, max_episode_steps, **options)
    one = make_one()
    serves = lambda: isinstance(env, str) and envpool_serves(env, one, max_episode_steps, options)  # noqa: E731
    try:
        spaces = one.observation_space, one.action_space
        chosen, reason = (
            (backend, "as asked")
            if backend != "auto"
            else choose(env, one, lanes, max_episode_steps, lambda: not options and serves())
        )
        must_step_together(env, chosen, max_episode_steps)
        if chosen == "envpool" and not serves():
            raise ConfigError(f"EnvPool's {env} has other spaces than Gymnasium's: use the sync or async backend")
        together = has_own_vector(env, one)
        limit = max_episode_steps or (one.spec.max_episode_steps if one.spec is not None else None)
    finally:
        one.close()
    make, half, whole = makers(env, make_one, lanes, chosen, max_episode_steps, options, together)
    return Lanes(make, *spaces, chosen, reason, limit, half, whole)


def makers(
    env: Any, make_one: MakeEnv, lanes: int, backend: str, limit: int | None, options: dict[str, Any], together: bool
) -> tuple[MakeEnvs, MakeEnvs | None, str]:
    """What makes the lanes of a seed, and half of them, where these step while somebody waits; or why there is none."""

    def maker(count: int, more: dict[str, Any]) -> MakeEnvs:
        return quietly(lanes_maker(env, make_one, count, backend, limit, more | options, together))

    threaded = backend == "envpool" or is_ale(env)
    if not threaded and backend != "async":
        return maker(lanes, {}), None, "lanes of the sync backend step in this process"
    if lanes % 2:
        return maker(lanes, {}), None, f"an odd number of lanes, {lanes} in each process, has no halves"
    threads = {"num_threads": max(1, min(lanes, ranks.cores()) // 2)} if threaded else {}
    return maker(lanes, {}), maker(lanes // 2, threads), ""


def lanes_maker(
    env: Any, make_one: MakeEnv, lanes: int, backend: str, limit: int | None, options: dict[str, Any], together: bool
) -> MakeEnvs:
    """What makes the lanes of a seed; `together` if the environment's own vector environment is to step them."""
    if backend == "envpool":
        return lambda seed: envpool_lanes(env, lanes, seed, limit, options)
    if backend == "async":
        return lambda seed: WorkerLanes([worker(make_one, seed + i) for i in range(lanes)])
    if is_ale(env):
        return lambda seed: ale_lanes(env, lanes, options, limit)
    if together:
        more: dict[str, Any] = options | ({} if limit is None else {"max_episode_steps": limit})
        return lambda seed: gym.make_vec(env, lanes, vectorization_mode="vector_entry_point", **more)
    return lambda seed: gym.vector.SyncVectorEnv([make_one] * lanes)


def is_ale(env: EnvLike) -> bool:
    return isinstance(env, str) and env.startswith(ALE)


def tensor_lanes(env: str | MakeEnv, lanes: int, limit: int | None, device: str) -> Lanes:
    if not isinstance(env, str) or env not in IN_TENSORS:
        raise unknown("environment in tensors", name_of(env), IN_TENSORS, "leave out the tensor backend")
    extra: dict[str, Any] = {} if limit is None else {"limit": limit}
    made = IN_TENSORS[env](1, **extra)
    spaces = made.single_observation_space, made.single_action_space
    make = lambda seed: IN_TENSORS[env](lanes, device=device, **extra)  # noqa: E731
    return Lanes(make, *spaces, "tensor", "as asked", getattr(made, "limit", None), whole=IN_GRAPH, in_tensors=True)


def must_step_together(env: EnvLike, backend: str, limit: int | None) -> None:
    """ConfigError for a backend that would step one lane after the other where only all together can be stepped."""
    if isinstance(env, str) and envpool_alone(env):
        if backend == "envpool" and limit is not None and heeds_no_limit(env):
            raise ConfigError(f"EnvPool's lanes of {env} heed no --max-episode-steps: use the sync backend")
        if backend != "envpool" and (backend != "sync" or not heeds_no_limit(env)):
            raise ConfigError(f"{env} is EnvPool's alone: use the envpool backend, or leave it to auto")
    if is_ale(env) and backend == "async":
        raise ConfigError(f"{env} has threads of its own, which step all lanes: use the sync backend")


def choose(
    env: EnvLike, one: gym.Env, lanes: int, limit: int | None, envpool_has_it: Callable[[], bool]
) -> tuple[str, str]:
    """The backend that is faster here, and why.

    EnvPool by rule alone, since its episodes differ from Gymnasium's; sync or async by the measured cost of a step,
    which cannot change a result, since both give the same numbers.
    """
    if isinstance(env, str) and envpool_alone(env):
        if limit is not None and heeds_no_limit(env):
            return "sync", "EnvPool's own lanes of it heed no limit of their episodes"
        return "envpool", "EnvPool alone has it"
    if has_own_vector(env, one):
        return "sync", "it has a vector environment of its own, which steps all lanes in one call"
    if lanes >= FEW_LANES and envpool_has_it():
        return "envpool", f"its threads step {lanes} lanes faster than Python does"
    seconds = step_seconds(one)
    if lanes > 1 and seconds > SLOW_STEP:
        return "async", f"a step takes {seconds * 1e3:.1f} ms, worth a process a lane"
    return "sync", f"a step takes {seconds * 1e6:.0f} µs, less than a message to another process is worth"


def step_seconds(one: gym.Env, budget: float = 0.1) -> float:
    """Median seconds of a step of one environment under random actions."""
    observation, _ = one.reset(seed=0)
    one.action_space.seed(0)
    seen: list[float] = []
    while len(seen) < 3 or (len(seen) < 50 and sum(seen) < budget):
        begin = time.perf_counter()
        observation, _, terminated, truncated, _ = one.step(allowed_action(one.action_space, observation))
        seen.append(time.perf_counter() - begin)
        if terminated or truncated:
            observation, _ = one.reset()
    return float(np.median(seen))


def worker(make_one: MakeEnv, seed: int) -> MakeEnv:
    """A maker for a worker process, seeded to the last corner.

    Signals often go to the whole process group. Stopping is the parent's to do, which first finishes its update: so a
    worker is deaf to Ctrl-C, and outlives a request to terminate by a grace period.
    """

    home = os.getpid()

    def make() -> gym.Env:
        if os.getpid() != home:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
        return make_one()

    return make


def quietly(make: MakeEnvs) -> MakeEnvs:
    """Gymnasium and EnvPool warn about things that are handled here."""

    def made(seed: int) -> gym.vector.VectorEnv:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make(seed)

    return made


class Borrowed(gym.vector.VectorWrapper):
    """A vector environment that the caller made, and will close; ConfigError for masks that are not in what is seen."""

    def __init__(self, env: gym.vector.VectorEnv) -> None:
        super().__init__(env)
        lanes: Any = env.unwrapped
        some = isinstance(lanes, gym.vector.SyncVectorEnv | gym.vector.AsyncVectorEnv)
        if callable(getattr(env, METHOD, None)) or (some and any(lanes.call("has_wrapper_attr", METHOD))):
            self.must_show(f"have {METHOD}()")

    def must_show(self, what: str) -> None:
        if not has_mask(self.single_observation_space):
            raise ConfigError(f"these lanes {what}: pass a maker of single ones, or put the mask into what is seen")

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        if MASK in info:
            self.must_show(f'say info["{MASK}"]')
        return observation, info

    def close(self, **kwargs: Any) -> None:
        pass


class WorkerLanes(gym.vector.AsyncVectorEnv):
    """Gymnasium's worker processes, which end with the run whatever has happened to one of them."""

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        if self._rests():
            super().close_extras(timeout, terminate)
            return
        for process in self.processes:  # one died, or is stuck in a step: asking politely would wait for it
            process.kill()
            process.join()

    def _rests(self) -> bool:
        """Whether all are well and wait for orders; a step that is under way, where another half failed, is ended."""
        if self._state is AsyncState.WAITING_STEP:
            try:
                self.step_wait(PATIENCE)
            except Exception:
                return False
        return self._state is AsyncState.DEFAULT and all(process.is_alive() for process in self.processes)
