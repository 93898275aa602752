"""Gymnasium's lanes for peers that bring no environments or normalisers of their own."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium.wrappers.vector import (
    NormalizeObservation,
    NormalizeReward,
    RecordEpisodeStatistics,
    TransformObservation,
    TransformReward,
)
from works import Work


def gymnasium_lanes(work: Work) -> tuple[gym.vector.VectorEnv, RecordEpisodeStatistics]:
    """The work's lanes in process, and the wrapper whose `return_queue` has the last episodes' returns.

    CartPole is Gymnasium's own vector environment, which `make_vec` takes by itself.
    """
    lanes = counted = RecordEpisodeStatistics(gym.make_vec(work.env, work.envs))
    if work.normalize:
        lanes = TransformObservation(NormalizeObservation(lanes), lambda x: np.clip(x, -10, 10))
        lanes = TransformReward(NormalizeReward(lanes, gamma=work.gamma), lambda x: np.clip(x, -10, 10))
    return lanes, counted


def last_return(counted: RecordEpisodeStatistics) -> float | None:
    """Mean return of the last 100 episodes; None where none has ended."""
    return float(np.mean(counted.return_queue)) if len(counted.return_queue) else None


def real_steps(steps: int, counted: RecordEpisodeStatistics) -> int:
    """Transitions among so many rows: the row that follows an episode's end resets the lane and is none."""
    return steps - int(counted.episode_count)
