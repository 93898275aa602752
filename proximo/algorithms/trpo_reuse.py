"""TRPO that also learns from the collections before the last (Kangin & Pugeault 2019, arXiv:1901.06212).

As `reuse.py`, with TRPO's step instead of PPO's: the trust region lies around the policy that the update starts from,
over the states of all collections that are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.advantages import explained_variance, standardize_weighted, vtrace
from proximo.algorithms.trpo import TRPOConfig
from proximo.batch import Batch
from proximo.checks import check
from proximo.models.normalize import reward_scale
from proximo.objectives import entropy, surrogate, told, value_error
from proximo.policy import Policy
from proximo.sources.rollouts import Rollouts, judged
from proximo.state import live_tensors
from proximo.updaters.adam import Adam
from proximo.updaters.natural import natural_step
from proximo.updaters.sgd import sgd


@dataclass(frozen=True)
class TRPOReuseConfig(TRPOConfig):
    """TRPO's numbers, and how much is kept."""

    rollouts: int = 2
    """Collections that an update learns from, the newest among them; 1 is TRPO."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, at_least_one=("rollouts",))


class TRPOReuse:
    """Collect, estimate the advantages of the last few collections by V-trace, then TRPO's step on all of them."""

    Config = TRPOReuseConfig

    def __init__(self, policy: Policy, config: TRPOReuseConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = Adam(policy, eps=1e-5, betas=config.betas)
        self.rollouts = Rollouts(config.rollouts, policy.device)
        self.reward_scale = reward_scale(config, policy.device)
        self.objective, self.fit = surrogate() + told(entropy()), value_error()

    def expect(self, example: Batch) -> None:
        """Make room for collections like this one."""
        self.rollouts.make_room(example)

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from one collection; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        lr = self.optimizer.lr = c.lr_at(progress)
        self.reward_scale(batch)
        self.rollouts.add(batch)
        batch = self.reward_scale.scaled(self.rollouts.together())
        batch = vtrace(*judged(self.policy, batch), c.gamma, c.lam)
        report = natural_step(
            self.policy, self.optimizer, self.objective, standardize_weighted(batch),
            c.delta, c.cg_iterations, c.cg_damping, c.fisher_fraction, c.halvings,
        )  # fmt: skip
        fit = sgd(self.policy, self.optimizer, self.fit, batch, c.epochs, c.minibatches, c.max_grad_norm)
        return {**fit, **report, "explained_variance": explained_variance(batch), "lr": lr}

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer, reward_scale=self.reward_scale, rollouts=self.rollouts)
