"""REINFORCE++ (Hu et al. 2025, arXiv:2501.03262), with or without its baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from proximo.advantages import monte_carlo
from proximo.algorithms.language.online import Grouped
from proximo.batch import Batch
from proximo.groups import centred
from proximo.objectives import clip
from proximo.policy import Policy
from proximo.reduce import whiten
from proximo.state import live_tensors


@dataclass(frozen=True)
class ReinforcePPConfig(Grouped):
    """Its own numbers."""

    clip: float = 0.2
    """ε: how far the ratio may move before its gradient is cut."""
    clip_high: float | None = None
    """How far it may move upwards, where that is not ε too."""
    baseline: bool = True
    """Take the mean of the prompt's completions from their scores; False needs one completion alone."""
    beta: float = 0.01
    """β: weight of KL(π ‖ π_ref), nats."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where that KL counts: in the reward of every token, or as a term of the loss."""

    @property
    def needs(self) -> frozenset[str]:
        return super().needs - (set() if self.baseline else {"group"})


class ReinforcePP:
    """No critic: what follows a token, its KL in it, whitened over all tokens of the batch."""

    Config, learns_from = ReinforcePPConfig, "completions"

    def __init__(self, policy: Policy, config: ReinforcePPConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = config.adam(policy)
        self.objective = config.near_reference(clip(config.clip, config.clip_high))

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from one collection; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        batch = c.rewarded(centred(batch) if c.baseline else batch).replace(next_value=torch.zeros_like(batch.reward))
        batch = monte_carlo(batch, gamma=1.0, baseline=False)
        batch = c.corrected(batch.replace(advantage=whiten(batch.advantage, batch.mask)))
        return c.descend(self.policy, self.optimizer, self.objective, batch, progress)

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer)
