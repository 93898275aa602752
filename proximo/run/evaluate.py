"""Evaluation: whole episodes of the policy as it is, in environments of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from proximo.batch import tree_map
from proximo.errors import EnvFailure, NonFiniteError, ProximoError
from proximo.run.agent import Agent
from proximo.run.seeding import EVALUATION, borrowed_generators, derived, seed_all
from proximo.sources.making import MakeEnv

TOGETHER = 32  # episodes played side by side
LONGEST = 100_000  # steps after which an episode is taken to have no end


@dataclass(frozen=True)
class Score:
    """Returns of whole episodes."""

    returns: list[float]
    lengths: list[int]

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        return float(np.std(self.returns))

    @property
    def counted(self) -> str:
        return "episodes"

    @property
    def samples(self) -> list[dict[str, Any]]:
        """None: `play` shows episodes."""
        return []

    def row(self) -> dict[str, Any]:
        summary = {"return_mean": self.mean, "return_std": self.std, "length_mean": float(np.mean(self.lengths))}
        return {**summary, "episodes": len(self.returns), **asdict(self)}


def evaluate(
    agent: Agent, make: MakeEnv, episodes: int, seed: int, stop: Callable[[], bool] = lambda: False
) -> Score | None:
    """Play whole episodes with the most likely actions, the i-th seeded by (seed, i); None if told to `stop`.

    No statistic of the agent changes, nor do the caller's generators. Raises EnvFailure for an environment that
    raises, or an episode that has no end; NonFiniteError for a reward that is no number.
    """
    score = Score([], [])
    with borrowed_generators():
        seed_all(derived(seed, EVALUATION, 0))
        for first in range(0, episodes, TOGETHER):
            part = _together(agent, make, range(first, min(first + TOGETHER, episodes)), seed, stop)
            if part is None:
                return None
            score.returns.extend(part.returns)
            score.lengths.extend(part.lengths)
    return score


def _together(agent: Agent, make: MakeEnv, indices: range, seed: int, stop: Callable[[], bool]) -> Score | None:
    """One episode each, in step, so that the policy is asked once for all that are still open."""
    envs: list[gym.Env] = []
    try:
        envs = [make() for _ in indices]
        observations = [env.reset(seed=derived(seed, EVALUATION, i))[0] for i, env in zip(indices, envs, strict=True)]
        agent.reset()
        returns, lengths, running = [0.0] * len(envs), [0] * len(envs), list(range(len(envs)))
        while running:
            if stop():
                return None
            actions = agent.act(agent.together([observations[i] for i in running]))
            still: list[int] = []
            for place, i in enumerate(running):
                action = tree_map(lambda x: x[place], actions)  # noqa: B023
                observations[i], reward, terminated, truncated, _ = envs[i].step(action)
                returns[i] += float(reward)
                lengths[i] += 1
                if not math.isfinite(returns[i]):
                    raise NonFiniteError(f"the reward is {reward} in evaluation, step {lengths[i]} of an episode")
                if not (terminated or truncated):
                    still.append(i)
            agent.keep([running.index(i) for i in still])
            running = still
            if running and lengths[running[0]] >= LONGEST:
                raise EnvFailure(
                    f"an episode has not ended after {LONGEST} steps: give --max-episode-steps N, or wrap the "
                    "environment in gymnasium.wrappers.TimeLimit"
                )
        return Score(returns, lengths)
    except ProximoError:
        raise
    except Exception as error:
        raise EnvFailure(f"the environment raised {type(error).__name__} while evaluating: {error}") from error
    finally:
        for env in envs:
            env.close()
