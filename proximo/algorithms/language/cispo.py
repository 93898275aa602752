"""Clipped importance-sampling policy optimization (MiniMax 2025, arXiv:2506.13585, eq. 4)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.algorithms.language.online import Grouped
from proximo.batch import Batch
from proximo.groups import group_relative
from proximo.policy import Policy
from proximo.reduce import action_mean
from proximo.sequences import cispo
from proximo.state import live_tensors


@dataclass(frozen=True)
class CISPOConfig(Grouped):
    """CISPO's own number."""

    ratio_bound: float = 5.0
    """The largest weight that a token's ratio may give to its gradient."""


class CISPO:
    """The score function weighed by a capped ratio: no token's gradient is cut."""

    Config, learns_from = CISPOConfig, "completions"

    def __init__(self, policy: Policy, config: CISPOConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = config.adam(policy)
        self.objective = config.near_reference(cispo(config.ratio_bound), action_mean)

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from one collection; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        batch = c.corrected(group_relative(c.rewarded(batch), std=True))
        return c.descend(self.policy, self.optimizer, self.objective, batch, progress)

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer)
