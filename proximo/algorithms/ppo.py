"""Proximal policy optimization with a clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from proximo.advantages import explained_variance, gae, standardize
from proximo.batch import Batch
from proximo.checks import check
from proximo.coefficients import linear
from proximo.models.normalize import RewardScale
from proximo.objectives import clip, entropy, value_error
from proximo.policy import Policy
from proximo.state import live_tensors
from proximo.updaters.adam import Adam
from proximo.updaters.sgd import sgd


@dataclass(frozen=True)
class PPOConfig:
    """PPO's own numbers."""

    horizon: int = 128
    """Steps each lane takes between two updates (the paper's T)."""
    lr: float = 2.5e-4
    """Adam's learning rate at the start."""
    anneal_lr: bool = True
    """Let the learning rate fall linearly to zero over the run."""
    gamma: float = 0.99
    """Discount."""
    lam: float = 0.95
    """GAE's λ: 0 trusts the critic alone, 1 the rewards alone."""
    clip: float = 0.2
    """ε: how far the ratio may move before its gradient is cut."""
    epochs: int = 4
    """Passes over the batch in an update (the paper's K)."""
    minibatches: int = 4
    """Equal parts of the batch in a pass, one gradient step each."""
    value_coef: float = 0.5
    """Weight of the value loss ½ (V − R)² (the paper's c1; Stable-Baselines3's vf_coef is half of it)."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus (the paper's c2)."""
    max_grad_norm: float = 0.5
    """Longest gradient (L2) that is not shortened."""
    normalize_reward: bool = False
    """Divide rewards by the running deviation of the discounted return."""

    def __post_init__(self) -> None:
        check(self, at_least_one=("horizon", "epochs", "minibatches"), positive=("lr", "clip", "max_grad_norm"))
        check(self, unit=("gamma", "lam"), not_negative=("value_coef", "entropy_coef"))


class PPO:
    """Collect, estimate advantages, then several epochs of minibatches on the clipped surrogate."""

    Config = PPOConfig

    def __init__(self, policy: Policy, config: PPOConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = Adam(policy, eps=1e-5)
        self.reward_scale = RewardScale(config.gamma).to(policy.device) if config.normalize_reward else nn.Identity()
        self.objective = clip(config.clip) + config.value_coef * value_error() - config.entropy_coef * entropy()

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from one collection; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        lr = self.optimizer.lr = linear(c.lr, 0.0, progress) if c.anneal_lr else c.lr
        batch = gae(self.reward_scale(batch), c.gamma, c.lam)
        report = sgd(
            self.policy, self.optimizer, self.objective, batch, c.epochs, c.minibatches, c.max_grad_norm, standardize
        )
        return {**report, "explained_variance": explained_variance(batch), "lr": lr}

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer, reward_scale=self.reward_scale)
