"""A reward model from pairs (Bradley & Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, eq. 1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.algorithms.language.config import Learning
from proximo.batch import Batch
from proximo.policy import Policy
from proximo.preferences import bradley_terry
from proximo.state import live_tensors


@dataclass(frozen=True)
class RewardModelConfig(Learning):
    """Its own numbers."""

    lr: float = 1e-5
    """AdamW's learning rate at the start."""
    centering: float = 0.01
    """Weight of (r_c + r_r)², which keeps rewards about zero."""


class RewardModel:
    """The value of a sequence's last token is its reward; a `margin` column says how far pairs should be apart."""

    Config, learns_from = RewardModelConfig, "pairs"

    def __init__(self, policy: Policy, config: RewardModelConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = config.adam(policy)
        self.objective = bradley_terry(config.centering)

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from some pairs; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        return c.descend(self.policy, self.optimizer, self.objective, batch, progress)

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer)
