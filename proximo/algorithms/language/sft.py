"""Supervised fine-tuning: the likelihood of given texts (step 1 of Ouyang et al. 2022, arXiv:2203.02155)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.algorithms.language.config import Learning
from proximo.batch import Batch
from proximo.policy import Policy
from proximo.sequences import nll
from proximo.state import live_tensors


@dataclass(frozen=True)
class SFTConfig(Learning):
    """Its own number."""

    lr: float = 2e-5
    """AdamW's learning rate at the start."""


class SFT:
    """Every learned token of a minibatch weighs the same, however texts are packed or parted."""

    Config, learns_from = SFTConfig, "texts"

    def __init__(self, policy: Policy, config: SFTConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = config.adam(policy)
        self.objective = nll()

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from some texts; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        return c.descend(self.policy, self.optimizer, self.objective, batch, progress)

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer)
