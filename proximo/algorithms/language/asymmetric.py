"""Asymmetric PPO: a large policy, small critics (Liu et al. 2025, arXiv:2510.01656)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.advantages import explained_variance, gae
from proximo.algorithms.language.rlhf_config import Judged
from proximo.batch import Batch
from proximo.critics import open_entropy, own_value_error, split, weigh
from proximo.objectives import clip
from proximo.policy import Policy
from proximo.reduce import whiten
from proximo.state import live_tensors


@dataclass(frozen=True)
class AsymmetricConfig(Judged):
    """Its own numbers."""

    agree: float = 0.2
    """Share of the states, those where the critics agree most, whose advantages do not count."""
    differ: float = 0.2
    """Share of the states, those where they differ most, that the entropy bonus leaves out."""
    entropy_coef: float = 0.01
    """Weight of the entropy bonus."""

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"values", "group"}


class AsymmetricPPO:
    """PPO whose value is the mean of small critics, which learn from disjoint shares of every prompt's completions."""

    Config, learns_from = AsymmetricConfig, "completions"

    def __init__(self, policy: Policy, config: AsymmetricConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = config.adam(policy, eps=1e-5)
        surrogate = config.near_reference(clip(config.clip, config.clip_high))
        value_loss = config.value_coef * own_value_error(config.value_clip)
        self.objective = config.exploring(surrogate + value_loss, open_entropy())

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from one collection; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        batch = gae(split(c.rewarded(batch)), c.gamma, c.lam)
        if c.whiten_advantages:
            batch = batch.replace(advantage=whiten(batch.advantage, batch.mask))
        batch = c.corrected(weigh(batch, c.agree, c.differ))
        report = c.descend(self.policy, self.optimizer, self.objective, batch, progress)
        return {**report, "explained_variance": explained_variance(batch)}

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer)
