"""Decoupled clip and dynamic sampling policy optimization (Yu et al. 2025, arXiv:2503.14476, eq. 8)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.algorithms.language.online import Grouped
from proximo.batch import Batch
from proximo.groups import drop_equal, group_relative
from proximo.objectives import clip
from proximo.policy import Policy
from proximo.reduce import action_mean
from proximo.state import live_tensors


@dataclass(frozen=True)
class DAPOConfig(Grouped):
    """DAPO's own numbers."""

    clip: float = 0.2
    """ε: how far the ratio may move before its gradient is cut."""
    clip_high: float | None = 0.28
    """How far it may move upwards: further, so that rare tokens can become likely."""


class DAPO:
    """GRPO with a higher upper clip, every token weighing the same, groups that scored alike left out."""

    Config, learns_from = DAPOConfig, "completions"

    def __init__(self, policy: Policy, config: DAPOConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = config.adam(policy)
        self.objective = config.near_reference(clip(config.clip, config.clip_high, action_mean), action_mean)

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from one collection; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        batch = drop_equal(batch)
        batch = c.corrected(group_relative(c.rewarded(batch), std=True))
        return c.descend(self.policy, self.optimizer, self.objective, batch, progress)

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer)
