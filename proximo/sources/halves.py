"""Two halves of the lanes: while one steps, the policy chooses for the other.

An image network takes about as long to choose as an emulator to step, and each waits for the other where all lanes step
together. So half of the lanes is asked to step, and while it does, the other half's actions are chosen, on half of the
threads (Stooke and Abbeel 2018, arXiv:1803.02811; double-buffered sampling in Petrenko et al. 2020, arXiv:2006.11751).
What is collected is what all lanes together would have given, to rounding: every lane has
its seed and its part of the noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from proximo import ranks
from proximo.batch import Batch, tree_map
from proximo.policy import Policy
from proximo.sources.acting import casting, noise_for
from proximo.sources.envs import EnvSource, MakeEnvs
from proximo.sources.episodes import Episodes
from proximo.state import live_tensors
from proximo.threads import threads


class Halves:
    """Collects `horizon` steps from every lane, as `EnvSource` does, from two vector environments of half of them each.

    `make(seed)` builds one half of the `lanes`. Beside `step` it has `step_async(actions)`, which returns at once, and
    `step_wait()`, which returns what `step` would.
    """

    def __init__(self, make: MakeEnvs, horizon: int, lanes: int, before: int = 0) -> None:
        self.horizon, self.lanes = horizon, lanes
        self.halves = [EnvSource(make, horizon, before + first) for first in (0, lanes // 2)]
        self.episodes = Episodes()

    def restart(self, seed: int) -> None:
        """Build the lanes from `seed` and start their first episodes; the open ones are given up."""
        for half in self.halves:
            half.restart(seed)
        self.episodes.restart(self.lanes * ranks.size())

    def collect(self, policy: Policy) -> Batch:
        """`horizon` steps of every lane: see `EnvSource.collect`. Where it raises, `restart` comes before the next."""
        noise, begin = noise_for(policy, self.horizon, self.lanes), 0
        for half in self.halves:
            count = half.lanes
            half.begin(policy, tree_map(lambda x: x[:, begin : begin + count], noise))  # noqa: B023
            begin += count
        with casting(policy.device), threads(acting_threads()):
            for t in range(self.horizon):
                for half in self.halves:
                    if t > 0:
                        wait(half, t - 1)
                    ask(half, t)
            for half in self.halves:
                wait(half, self.horizon - 1)
        first, second = (half.finish() for half in self.halves)
        batch = first.with_leaves(torch.cat(pair, 1) for pair in zip(first.leaves(), second.leaves(), strict=True))
        played = zip(*(half.played for half in self.halves), strict=True)
        self.episodes.add_everyones(*(np.concatenate(pair, 1) for pair in played))
        return batch.map(lambda x: ranks.gathered(x, self.lanes * ranks.size(), 1))

    def state_tensors(self) -> dict[str, Tensor]:
        return live_tensors(episodes=self.episodes)

    def close(self) -> None:
        for half in self.halves:
            half.close()


def acting_threads() -> int:
    """How many of torch's threads a policy has while environments step beside it."""
    return max(1, torch.get_num_threads() // 2)


def ask(half: EnvSource, t: int) -> None:
    """Choose for step `t`, and let it begin."""
    envs: Any = half.envs
    action = half.act(t)
    half.guarded("step", lambda: envs.step_async(action), t)


def wait(half: EnvSource, t: int) -> None:
    """Take what step `t` made."""
    envs: Any = half.envs
    half.take(t, half.guarded("step", envs.step_wait, t))
