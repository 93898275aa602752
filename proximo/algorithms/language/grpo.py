"""Group relative policy optimization (Shao et al. 2024, arXiv:2402.03300, eq. 3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.algorithms.language.online import Grouped
from proximo.batch import Batch
from proximo.groups import group_relative
from proximo.objectives import clip
from proximo.policy import Policy
from proximo.reduce import sequence_mean
from proximo.state import live_tensors


@dataclass(frozen=True)
class GRPOConfig(Grouped):
    """GRPO's own numbers."""

    clip: float = 0.2
    """ε: how far the ratio may move before its gradient is cut."""
    clip_high: float | None = None
    """How far it may move upwards, where that is not ε too."""
    beta: float = 0.04
    """β: weight of KL(π ‖ π_ref), nats."""


class GRPO:
    """The clipped surrogate, a sequence's tokens together weighing as much as another's, and no critic."""

    Config, learns_from = GRPOConfig, "completions"

    def __init__(self, policy: Policy, config: GRPOConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = config.adam(policy)
        self.objective = config.near_reference(clip(config.clip, config.clip_high, sequence_mean), sequence_mean)

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from one collection; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        batch = c.corrected(group_relative(c.rewarded(batch), std=True))
        return c.descend(self.policy, self.optimizer, self.objective, batch, progress)

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer)
