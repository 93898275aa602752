"""PPO that also learns from the collections before the last (Kangin & Pugeault 2019, arXiv:1901.06212).

The paper puts the rollouts of several consecutive policies π_n into a buffer, bounds the step by the newest alone, and
fits advantages of all of them under today's value function. Here the correction for who acted is V-trace
(`advantages.vtrace`), and each ratio is clipped around the policy that the update starts from:

    E[min(r A, clip(r, 1 − ε, 1 + ε) A)],   r = π(a|s) / π_old(a|s),   A ∝ min(1, π_old(a|s) / π_n(a|s)) (Â − m)

Clipped around π_n instead, rows of older policies would lose their gradient before the first step (Queeney et al. 2021,
arXiv:2111.00072).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.advantages import explained_variance, standardize_weighted, vtrace
from proximo.algorithms.config import Proximal
from proximo.batch import Batch
from proximo.checks import check
from proximo.models.normalize import reward_scale
from proximo.objectives import clip, entropy, value_error
from proximo.policy import Policy
from proximo.sources.rollouts import Rollouts, judged
from proximo.state import live_tensors
from proximo.updaters.adam import Adam
from proximo.updaters.sgd import sgd


@dataclass(frozen=True)
class ReuseConfig(Proximal):
    """The numbers of PPO with replay that are not PPO's."""

    clip: float = 0.2
    """ε: how far the ratio may move before its gradient is cut."""
    rollouts: int = 2
    """Collections that an update learns from, the newest among them; 1 is PPO."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, at_least_one=("rollouts",), below_one=("clip",))


class Reuse:
    """Collect, estimate the advantages of the last few collections by V-trace, then PPO on all of them."""

    Config = ReuseConfig

    def __init__(self, policy: Policy, config: ReuseConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = Adam(policy, eps=1e-5, betas=config.betas)
        self.rollouts = Rollouts(config.rollouts, policy.device)
        self.reward_scale = reward_scale(config, policy.device)
        self.objective = clip(config.clip) + config.value_coef * value_error() - config.entropy_coef * entropy()

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
        report = sgd(
            self.policy, self.optimizer, self.objective, batch, c.epochs, c.minibatches, c.max_grad_norm,
            standardize_weighted,
        )  # fmt: skip
        return {**report, "explained_variance": explained_variance(batch), "lr": lr}

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer, reward_scale=self.reward_scale, rollouts=self.rollouts)
