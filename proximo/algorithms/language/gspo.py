"""Group sequence policy optimization (Zheng et al. 2025, arXiv:2507.18071, eq. 5)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.algorithms.language.config import must_weigh_tokens
from proximo.algorithms.language.online import Grouped
from proximo.batch import Batch
from proximo.groups import group_relative
from proximo.policy import Policy
from proximo.reduce import sequence_mean
from proximo.sequences import sequence_clip
from proximo.state import live_tensors


@dataclass(frozen=True)
class GSPOConfig(Grouped):
    """GSPO's own numbers."""

    clip: float = 3e-4
    """ε: how far a sequence's ratio may move down before its gradient is cut."""
    clip_high: float | None = 4e-4
    """How far it may move upwards."""

    def __post_init__(self) -> None:
        super().__post_init__()
        must_weigh_tokens(self)


class GSPO:
    """GRPO with one ratio for a sequence, the geometric mean of its tokens'."""

    Config, learns_from = GSPOConfig, "completions"

    def __init__(self, policy: Policy, config: GSPOConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = config.adam(policy)
        self.objective = config.near_reference(sequence_clip(config.clip, config.clip_high), sequence_mean)

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from one collection; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        batch = group_relative(c.rewarded(batch), std=True)
        return c.descend(self.policy, self.optimizer, self.objective, batch, progress)

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer)
