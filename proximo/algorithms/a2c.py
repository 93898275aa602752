"""Advantage actor-critic (Mnih et al. 2016, arXiv:1602.01783, Algorithm S3), its actors in step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.advantages import explained_variance, gae
from proximo.algorithms.config import GAE, Descent, Losses
from proximo.batch import Batch
from proximo.models.normalize import reward_scale
from proximo.objectives import entropy, score, value_error
from proximo.policy import Policy
from proximo.state import live_tensors
from proximo.updaters.rmsprop import RMSProp
from proximo.updaters.sgd import sgd


@dataclass(frozen=True)
class A2CConfig(Losses, Descent, GAE):
    """A2C's own numbers: those of Stable-Baselines3."""

    horizon: int = 5
    """Steps each lane takes between two updates (the paper's t_max)."""
    lam: float = 1.0
    """GAE's λ: 1 is the paper's n-step return."""
    lr: float = 7e-4
    """RMSProp's learning rate at the start."""
    anneal_lr: bool = False
    """Let the learning rate fall linearly to zero over the run."""
    value_coef: float = 1.0
    """Weight of the value loss ½ (V − R)² (Stable-Baselines3's vf_coef is half of it)."""


class A2C:
    """Collect a few steps, estimate advantages, then one gradient step on −log π(a|s) A with RMSProp."""

    Config = A2CConfig

    def __init__(self, policy: Policy, config: A2CConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = RMSProp(policy, eps=1e-5, alpha=0.99)
        self.reward_scale = reward_scale(config, policy.device)
        self.objective = score() + config.value_coef * value_error() - config.entropy_coef * entropy()

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from one collection; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        lr = self.optimizer.lr = c.lr_at(progress)
        batch = gae(self.reward_scale(batch), c.gamma, c.lam)
        report = sgd(self.policy, self.optimizer, self.objective, batch, 1, 1, c.max_grad_norm)
        return {**report, "explained_variance": explained_variance(batch), "lr": lr}

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer, reward_scale=self.reward_scale)
