"""PPO with a dual-clipped surrogate (Ye et al. 2020, arXiv:1912.09729)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.advantages import explained_variance, gae, standardize
from proximo.algorithms.config import Proximal
from proximo.batch import Batch
from proximo.checks import check
from proximo.errors import ConfigError
from proximo.models.normalize import reward_scale
from proximo.objectives import dual_clip, entropy, value_error
from proximo.policy import Policy
from proximo.state import live_tensors
from proximo.updaters.adam import Adam
from proximo.updaters.sgd import sgd


@dataclass(frozen=True)
class DualClipConfig(Proximal):
    """The two clips."""

    clip: float = 0.2
    """ε: how far the ratio may move before its gradient is cut."""
    dual_clip: float = 3.0
    """c: how large the ratio of a bad action may be before its gradient is cut too; greater than 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, positive=("dual_clip",), below_one=("clip",))
        if self.dual_clip <= 1:
            raise ConfigError(f"dual_clip is {self.dual_clip}: it must be greater than 1")


class DualClip:
    """PPO with −max(min(r A, clip(r, 1 − ε, 1 + ε) A), c A) where A < 0: a bad action's loss stays within c |A|."""

    Config = DualClipConfig

    def __init__(self, policy: Policy, config: DualClipConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = Adam(policy, eps=1e-5, betas=config.betas)
        self.reward_scale = reward_scale(config, policy.device)
        clipped = dual_clip(config.clip, config.dual_clip)
        self.objective = clipped + config.value_coef * value_error() - config.entropy_coef * entropy()

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
