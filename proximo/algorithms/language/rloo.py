"""REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv:2402.14740)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from proximo.algorithms.language.config import must_weigh_tokens
from proximo.algorithms.language.online import Grouped
from proximo.batch import Batch
from proximo.groups import leave_one_out
from proximo.policy import Policy
from proximo.reduce import constant_length
from proximo.sequences import sequence_clip, sequence_score
from proximo.state import live_tensors


@dataclass(frozen=True)
class RLOOConfig(Grouped):
    """RLOO's own numbers."""

    clip: float | None = 0.2
    """ε: how far a sequence's ratio may move; None takes the score function, for one step a batch."""
    beta: float = 0.05
    """β: weight of KL(π ‖ π_ref), nats."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where that KL counts: in the reward of every token, or as a term of the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        must_weigh_tokens(self)


class RLOO:
    """A sequence is one action; its baseline is what the other completions of its prompt scored."""

    Config, learns_from = RLOOConfig, "completions"

    def __init__(self, policy: Policy, config: RLOOConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = config.adam(policy)
        surrogate = sequence_score() if config.clip is None else sequence_clip(config.clip, mean=False)
        self.objective = config.near_reference(surrogate, constant_length(1))

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from one collection; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        batch = leave_one_out(c.rewarded(batch))
        return c.descend(self.policy, self.optimizer, self.objective, batch, progress)

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer)
