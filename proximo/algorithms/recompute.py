"""PPO that estimates advantages anew before every pass (Andrychowicz et al. 2021, arXiv:2006.05990, section 3.5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proximo.advantages import explained_variance, gae, revalue, standardize
from proximo.algorithms.config import Proximal
from proximo.batch import Batch
from proximo.checks import check
from proximo.models.normalize import reward_scale
from proximo.objectives import clip, entropy, value_error
from proximo.policy import Policy
from proximo.state import live_tensors
from proximo.updaters.adam import Adam
from proximo.updaters.sgd import sgd


@dataclass(frozen=True)
class RecomputeConfig(Proximal):
    """Its own number is PPO's."""

    clip: float = 0.2
    """ε: how far the ratio may move before its gradient is cut."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, below_one=("clip",))


class RecomputePPO:
    """As PPO, −min(r A, clip(r, 1 − ε, 1 + ε) A), but in every pass A and R are GAE's of the critic's latest values."""

    Config = RecomputeConfig

    def __init__(self, policy: Policy, config: RecomputeConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = Adam(policy, eps=1e-5, betas=config.betas)
        self.reward_scale = reward_scale(config, policy.device)
        self.objective = clip(config.clip) + config.value_coef * value_error() - config.entropy_coef * entropy()

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from one collection; `progress` is the share of the run that is done. Returns its metrics."""
        c, reports = self.config, []
        lr = self.optimizer.lr = c.lr_at(progress)
        batch = gae(self.reward_scale(batch), c.gamma, c.lam)
        explained = explained_variance(batch)
        for each in range(c.epochs):
            if each > 0:
                with torch.no_grad():
                    batch = gae(revalue(batch, self.policy.evaluate(batch).value), c.gamma, c.lam)
            reports.append(
                sgd(self.policy, self.optimizer, self.objective, batch, 1, c.minibatches, c.max_grad_norm, standardize)
            )
        means = {name: torch.stack([report[name] for report in reports]).mean() for name in reports[0]}
        return {**means, "explained_variance": explained, "lr": lr}

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer, reward_scale=self.reward_scale)
