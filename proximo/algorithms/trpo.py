"""Trust region policy optimization (Schulman et al. 2015, arXiv:1502.05477, eq. 14, section 6 and appendix C).

    maximise E[r A]  subject to  E[KL(π_old ‖ π)] ≤ δ,   r = π(a|s) / π_old(a|s)

A natural step of KL δ (Fisher-vector products on a tenth of the rows, conjugate gradient), halved until the exact KL of
all rows is within the bound and E[r A] has grown; if that never is, the old parameters stand.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.advantages import explained_variance, gae, standardize
from proximo.algorithms.natural_config import Natural
from proximo.batch import Batch
from proximo.checks import check
from proximo.models.normalize import reward_scale
from proximo.objectives import entropy, surrogate, told, value_error
from proximo.policy import Policy
from proximo.state import live_tensors
from proximo.updaters.adam import Adam
from proximo.updaters.natural import natural_step
from proximo.updaters.sgd import sgd


@dataclass(frozen=True)
class TRPOConfig(Natural):
    """TRPO's own numbers."""

    halvings: int = 10
    """How often a step that breaks the bound, or gains nothing, is halved before it is given up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, at_least_one=("halvings",))


class TRPO:
    """Collect, estimate advantages, one step of the policy within the trust region, then fit the value function."""

    Config = TRPOConfig

    def __init__(self, policy: Policy, config: TRPOConfig) -> None:
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
            c.delta, c.cg_iterations, c.cg_damping, c.fisher_fraction, c.halvings,
        )  # fmt: skip
        fit = sgd(self.policy, self.optimizer, self.fit, batch, c.epochs, c.minibatches, c.max_grad_norm)
        return {**fit, **report, "explained_variance": explained_variance(batch), "lr": lr}

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer, reward_scale=self.reward_scale)
