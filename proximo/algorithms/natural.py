"""Natural policy gradient (Kakade 2001, "A Natural Policy Gradient", NIPS 14), its step size set by the KL.

    θ ← θ + √(2δ / gᵀF⁻¹g) F⁻¹g,   g = ∇E[r A],   r = π(a|s) / π_old(a|s),   F the Fisher matrix

The gradient is Kakade's (section 2), the length of the step Rajeswaran et al.'s (2017, arXiv:1703.02660, eq. 5). F is
known by its products with vectors alone, and F⁻¹g is found by conjugate gradient (`updaters/natural.py`). Nothing looks
whether the step was a good one; TRPO does (`trpo.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.advantages import explained_variance, gae, standardize
from proximo.algorithms.natural_config import Natural
from proximo.batch import Batch
from proximo.models.normalize import reward_scale
from proximo.objectives import entropy, surrogate, told, value_error
from proximo.policy import Policy
from proximo.state import live_tensors
from proximo.updaters.adam import Adam
from proximo.updaters.natural import natural_step
from proximo.updaters.sgd import sgd


@dataclass(frozen=True)
class NPGConfig(Natural):
    """The natural policy gradient has no numbers of its own."""


class NPG:
    """Collect, estimate advantages, one natural step of the policy, then fit the value function by Adam."""

    Config = NPGConfig

    def __init__(self, policy: Policy, config: NPGConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = Adam(policy, eps=1e-5, betas=config.betas)
        self.reward_scale = reward_scale(config, policy.device)
        self.objective, self.fit = surrogate() + told(entropy()), value_error()

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from one collection; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        lr = self.optimizer.lr = c.lr_at(progress)
        batch = gae(self.reward_scale(batch), c.gamma, c.lam)
        report = natural_step(
            self.policy, self.optimizer, self.objective, standardize(batch),
            c.delta, c.cg_iterations, c.cg_damping, c.fisher_fraction,
        )  # fmt: skip
        fit = sgd(self.policy, self.optimizer, self.fit, batch, c.epochs, c.minibatches, c.max_grad_norm)
        return {**fit, **report, "explained_variance": explained_variance(batch), "lr": lr}

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer, reward_scale=self.reward_scale)
