"""PPO whose clip range follows the KL, as an adaptive penalty does (Schulman et al. 2017, arXiv:1707.06347, sec. 4)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.advantages import explained_variance, gae, standardize
from proximo.algorithms.config import Proximal
from proximo.batch import Batch
from proximo.checks import check
from proximo.coefficients import Coefficient, steered
from proximo.drift import kl
from proximo.errors import ConfigError
from proximo.models.normalize import reward_scale
from proximo.objectives import clip, entropy, value_error
from proximo.policy import Policy
from proximo.state import live_tensors
from proximo.updaters.adam import Adam
from proximo.updaters.sgd import sgd


@dataclass(frozen=True)
class AdaptiveClipConfig(Proximal):
    """The clip's own numbers."""

    clip: float = 0.2
    """ε at the start."""
    target_kl: float = 0.01
    """The exact KL(old ‖ new), nats, that an update should reach; ε shrinks by 1.5 above twice it, grows below half."""
    clip_min: float = 0.02
    """Smallest ε."""
    clip_max: float = 0.5
    """Largest ε."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, positive=("target_kl",), below_one=("clip", "clip_min", "clip_max"))
        if not self.clip_min <= self.clip <= self.clip_max:
            raise ConfigError(
                f"clip is {self.clip}: it must be within clip_min {self.clip_min} and clip_max {self.clip_max}"
            )


class AdaptiveClip:
    """PPO, −min(r A, clip(r, 1 − ε, 1 + ε) A), ε divided by 1.5 above a KL of 2 d_targ, times 1.5 below d_targ / 2."""

    Config = AdaptiveClipConfig

    def __init__(self, policy: Policy, config: AdaptiveClipConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = Adam(policy, eps=1e-5, betas=config.betas)
        self.reward_scale = reward_scale(config, policy.device)
        self.epsilon = Coefficient("epsilon", config.clip)
        self.objective = clip(self.epsilon) + config.value_coef * value_error() - config.entropy_coef * entropy()

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from one collection; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        lr = self.optimizer.lr = c.lr_at(progress)
        batch = self.epsilon.on(gae(self.reward_scale(batch), c.gamma, c.lam))
        report = sgd(
            self.policy, self.optimizer, self.objective, batch, c.epochs, c.minibatches, c.max_grad_norm, standardize
        )
        reached, epsilon = kl(self.policy, batch).item(), self.epsilon.value
        self.epsilon.value = steered(epsilon, reached, c.target_kl, 2, 1 / 1.5, c.clip_min, c.clip_max)
        drift = {"clip": epsilon, "kl_after": reached}
        return {**report, **drift, "explained_variance": explained_variance(batch), "lr": lr}

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer, reward_scale=self.reward_scale, epsilon=self.epsilon)
