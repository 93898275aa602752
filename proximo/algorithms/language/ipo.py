"""Identity preference optimization (Azar et al. 2023, arXiv:2310.12036, eq. 17)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.algorithms.language.config import Learning
from proximo.batch import Batch
from proximo.checks import check
from proximo.policy import Policy
from proximo.preferences import ipo
from proximo.state import live_tensors


@dataclass(frozen=True)
class IPOConfig(Learning):
    """IPO's own number."""

    beta: float = 0.1
    """τ of the paper: the log-ratios of a pair are led to 1 / 2β apart, and no further."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, positive=("beta",))

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"ref_logp"}


class IPO:
    """A regression of the log-ratio, which stays finite where preferences are certain."""

    Config, learns_from = IPOConfig, "pairs"

    def __init__(self, policy: Policy, config: IPOConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = config.adam(policy)
        self.objective = ipo(config.beta)

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from some pairs; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        return c.descend(self.policy, self.optimizer, self.objective, batch, progress)

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer)
