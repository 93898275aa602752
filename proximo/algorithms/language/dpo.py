"""Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290, eq. 7)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.algorithms.language.config import Learning
from proximo.batch import Batch
from proximo.policy import Policy
from proximo.preferences import dpo
from proximo.state import live_tensors


@dataclass(frozen=True)
class DPOConfig(Learning):
    """DPO's own number."""

    beta: float = 0.1
    """β: how dear it is to leave the reference."""

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"ref_logp"}


class DPO:
    """The reward model is the policy's own log-ratio to the reference."""

    Config, learns_from = DPOConfig, "pairs"

    def __init__(self, policy: Policy, config: DPOConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = config.adam(policy)
        self.objective = dpo(config.beta)

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from some pairs; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        return c.descend(self.policy, self.optimizer, self.objective, batch, progress)

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer)
