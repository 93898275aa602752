"""PPO whose learning rate follows the KL: lr / 1.5 above twice the target, lr · 1.5 below half (rl_games, rsl_rl)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.advantages import explained_variance, gae, standardize
from proximo.algorithms.config import GAE, Epochs, Losses, Moments
from proximo.batch import Batch
from proximo.checks import check
from proximo.coefficients import steered
from proximo.drift import kl
from proximo.errors import ConfigError
from proximo.models.normalize import reward_scale
from proximo.objectives import clip, entropy, value_error
from proximo.policy import Policy
from proximo.state import live_tensors
from proximo.updaters.adam import Adam
from proximo.updaters.sgd import sgd


@dataclass(frozen=True)
class AdaptiveLRConfig(Losses, Epochs, Moments, GAE):
    """The learning rate's own numbers, and PPO's."""

    clip: float = 0.2
    """ε: how far the ratio may move before its gradient is cut."""
    max_grad_norm: float = 0.5
    """Longest gradient (L2) that is not shortened."""
    lr: float = 1e-3
    """Adam's learning rate at the start."""
    target_kl: float = 0.01
    """The exact KL(old ‖ new) in nats, over the whole batch, that a pass should leave."""
    lr_min: float = 1e-5
    """Smallest learning rate."""
    lr_max: float = 1e-2
    """Largest learning rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, positive=("target_kl", "lr_min", "lr_max"), below_one=("clip",))
        if not self.lr_min <= self.lr <= self.lr_max:
            raise ConfigError(f"lr is {self.lr}: it must be within lr_min {self.lr_min} and lr_max {self.lr_max}")


class AdaptiveLR:
    """PPO, −min(r A, clip(r, 1 − ε, 1 + ε) A), its learning rate set anew after each pass by KL(π_old ‖ π)."""

    Config = AdaptiveLRConfig

    def __init__(self, policy: Policy, config: AdaptiveLRConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = Adam(policy, config.lr, eps=1e-5, betas=config.betas)
        self.reward_scale = reward_scale(config, policy.device)
        self.objective = clip(config.clip) + config.value_coef * value_error() - config.entropy_coef * entropy()

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from one collection; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        batch = gae(self.reward_scale(batch), c.gamma, c.lam)
        reached = 0.0

        def follow() -> bool:
            nonlocal reached
            reached = kl(self.policy, batch).item()
            self.optimizer.lr = steered(self.optimizer.lr, reached, c.target_kl, 2, 1 / 1.5, c.lr_min, c.lr_max)
            return False

        passes = c.epochs, c.minibatches, c.max_grad_norm
        report = sgd(self.policy, self.optimizer, self.objective, batch, *passes, standardize, follow)
        drift = {"kl_after": reached, "lr": self.optimizer.lr}
        return {**report, **drift, "explained_variance": explained_variance(batch)}

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer, reward_scale=self.reward_scale)
