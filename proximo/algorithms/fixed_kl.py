"""The surrogate with a fixed KL penalty (Schulman et al. 2017, arXiv:1707.06347, eq. 8 and table 1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.advantages import explained_variance, gae, standardize
from proximo.algorithms.config import Proximal
from proximo.batch import Batch
from proximo.checks import check
from proximo.models.normalize import reward_scale
from proximo.objectives import entropy, kl_old, surrogate, value_error
from proximo.policy import Policy
from proximo.state import live_tensors
from proximo.updaters.adam import Adam
from proximo.updaters.sgd import sgd


@dataclass(frozen=True)
class FixedKLConfig(Proximal):
    """The penalty's own number."""

    beta: float = 3.0
    """β: weight of the exact KL(old ‖ new) in nats; 3 is the best of the paper's four."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, not_negative=("beta",))


class FixedKL:
    """PPO with −r A + β KL(π_old ‖ π) instead of the clipped surrogate, β constant."""

    Config = FixedKLConfig

    def __init__(self, policy: Policy, config: FixedKLConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = Adam(policy, eps=1e-5, betas=config.betas)
        self.reward_scale = reward_scale(config, policy.device)
        penalised = surrogate() + config.beta * kl_old()
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
