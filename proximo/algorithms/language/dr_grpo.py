"""GRPO done right (Liu et al. 2025, arXiv:2503.20783, section 3.2): no bias to length or to difficulty."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.algorithms.language.online import Grouped
from proximo.batch import Batch
from proximo.errors import ConfigError
from proximo.groups import group_relative
from proximo.objectives import clip
from proximo.policy import Policy
from proximo.reduce import constant_length
from proximo.state import live_tensors


@dataclass(frozen=True)
class DrGRPOConfig(Grouped):
    """Its own numbers."""

    clip: float = 0.2
    """ε: how far the ratio may move before its gradient is cut."""
    clip_high: float | None = None
    """How far it may move upwards, where that is not ε too."""
    max_length: int | None = None
    """L, the loss is a sum over tokens divided by it; None takes the most tokens that a completion may have."""


class DrGRPO:
    """GRPO whose advantages are not divided by a deviation, nor its sums by the lengths that were sampled."""

    Config, learns_from = DrGRPOConfig, "completions"

    def __init__(self, policy: Policy, config: DrGRPOConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = config.adam(policy)
        if config.max_length is None:
            raise ConfigError("max_length is not known: give the most tokens that a completion may have")
        reduce = constant_length(config.max_length)
        self.objective = config.near_reference(clip(config.clip, config.clip_high, reduce), reduce)

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from one collection; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        batch = c.corrected(group_relative(c.rewarded(batch), std=False))
        return c.descend(self.policy, self.optimizer, self.objective, batch, progress)

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer)
