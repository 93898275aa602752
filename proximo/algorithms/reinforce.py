"""REINFORCE: the score function times the rewards to go (Williams 1992, Machine Learning 8, 229–256)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.advantages import explained_variance, monte_carlo
from proximo.algorithms.config import Descent, Losses, Moments
from proximo.batch import Batch
from proximo.models.normalize import reward_scale
from proximo.objectives import entropy, score, value_error
from proximo.policy import Policy
from proximo.state import live_tensors
from proximo.updaters.adam import Adam
from proximo.updaters.sgd import sgd


@dataclass(frozen=True)
class REINFORCEConfig(Losses, Moments, Descent):
    """REINFORCE's own numbers."""

    horizon: int = 256
    """Steps each lane takes between two updates; the episode that is open at the end is cut there."""
    lr: float = 1e-2
    """Adam's learning rate at the start."""
    baseline: bool = True
    """Subtract the value from the rewards to go: the same gradient in the mean, with less noise."""


class REINFORCE:
    """Collect, then one gradient step on −log π(a|s) (R − V(s)), or on −log π(a|s) R without the baseline.

    R are the rewards to the end of the episode. Where an episode is cut before its end (truncated, or by the end of
    the collection), what would have followed is V of the final observation: the critic learns without the baseline too.
    """

    Config = REINFORCEConfig

    def __init__(self, policy: Policy, config: REINFORCEConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = Adam(policy, eps=1e-5, betas=config.betas)
        self.reward_scale = reward_scale(config, policy.device)
        self.objective = score() + config.value_coef * value_error() - config.entropy_coef * entropy()

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from one collection; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        lr = self.optimizer.lr = c.lr_at(progress)
        batch = monte_carlo(self.reward_scale(batch), c.gamma, c.baseline)
        report = sgd(self.policy, self.optimizer, self.objective, batch, 1, 1, c.max_grad_norm)
        return {**report, "explained_variance": explained_variance(batch), "lr": lr}

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer, reward_scale=self.reward_scale)
