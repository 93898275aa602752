"""PPO in the Fisher–Rao geometry (Lascu, Šiška & Szpruch 2025, arXiv:2506.03757v2, eq. 16 and Algorithm 1).

The distance between the old policy and the new one is symmetric in them, where the KL of `penalty.py` is not.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.advantages import explained_variance, gae, standardize
from proximo.algorithms.config import Proximal
from proximo.batch import Batch
from proximo.checks import check
from proximo.models.normalize import reward_scale
from proximo.objectives import entropy, fisher_rao, surrogate, value_error
from proximo.policy import Policy
from proximo.state import live_tensors
from proximo.updaters.adam import Adam
from proximo.updaters.sgd import sgd


@dataclass(frozen=True)
class FisherRaoConfig(Proximal):
    """The penalty's own number."""

    tau: float = 0.1
    """τ: how far an update may go. A density's unit is in it: 0.1 suits one choice or one coordinate, 3e-4 was the
    paper's for Walker2d's six."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, positive=("tau",))


class FisherRao:
    """PPO with −r A + FR²(π², π_old²) / 8τ, a state-weighted Fisher–Rao distance, instead of the clipped surrogate."""

    Config = FisherRaoConfig

    def __init__(self, policy: Policy, config: FisherRaoConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = Adam(policy, eps=1e-5, betas=config.betas)
        self.reward_scale = reward_scale(config, policy.device)
        penalised = surrogate() + (1 / config.tau) * fisher_rao()
        self.objective = penalised + config.value_coef * value_error() - config.entropy_coef * entropy()

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from one collection; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        lr = self.optimizer.lr = c.lr_at(progress)
        batch = gae(self.reward_scale(batch), c.gamma, c.lam)
        report = sgd(
            self.policy, self.optimizer, self.objective, batch, c.epochs, c.minibatches, c.max_grad_norm, standardize
        )
        return {**report, "explained_variance": explained_variance(batch), "lr": lr}

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer, reward_scale=self.reward_scale)
