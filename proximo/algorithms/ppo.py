"""Proximal policy optimization with a clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proximo.advantages import explained_variance, gae, standardize
from proximo.algorithms.config import Proximal
from proximo.batch import Batch
from proximo.checks import check
from proximo.coefficients import Coefficient, linear
from proximo.drift import kl
from proximo.models.normalize import reward_scale
from proximo.objectives import clip, entropy, value_error
from proximo.policy import Policy
from proximo.state import live_tensors
from proximo.updaters.adam import Adam
from proximo.updaters.sgd import sgd


@dataclass(frozen=True)
class PPOConfig(Proximal):
    """PPO's own numbers."""

    clip: float = 0.2
    """ε: how far the ratio may move before its gradient is cut."""
    anneal_clip: bool = False
    """Let ε fall linearly to zero over the run; a clip_high stays."""
    clip_high: float | None = None
    """How far it may move upwards, where that is not ε too."""
    value_clip: float | None = None
    """How far the value may move before its gradient is cut; None lets it go."""
    target_kl: float | None = None
    """End the update after the pass that takes KL(old ‖ new), exact and over the whole batch, above this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = (name for name in ("clip_high", "value_clip", "target_kl") if getattr(self, name) is not None)
        check(self, positive=tuple(asked), below_one=("clip",))


class PPO:
    """Collect, estimate advantages, then epochs of minibatches on −min(r A, clip(r, 1 − ε, 1 + ε) A), r = π / π_old."""

    Config = PPOConfig

    def __init__(self, policy: Policy, config: PPOConfig) -> None:
        self.policy, self.config = policy, config
        self.optimizer = Adam(policy, eps=1e-5, betas=config.betas)
        self.reward_scale = reward_scale(config, policy.device)
        self.epsilon = Coefficient("epsilon", config.clip) if config.anneal_clip else config.clip
        value_loss = config.value_coef * value_error(config.value_clip)
        self.objective = clip(self.epsilon, config.clip_high) + value_loss - config.entropy_coef * entropy()

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """One update from one collection; `progress` is the share of the run that is done. Returns its metrics."""
        c = self.config
        lr = self.optimizer.lr = c.lr_at(progress)
        batch = gae(self.reward_scale(batch), c.gamma, c.lam)
        if isinstance(self.epsilon, Coefficient):
            self.epsilon.value = linear(c.clip, 0.0, progress)
            batch = self.epsilon.on(batch)
        reached: list[float] = []

        def far() -> bool:
            reached.append(kl(self.policy, batch).item())
            return reached[-1] > (c.target_kl or 0)

        passes = c.epochs, c.minibatches, c.max_grad_norm, standardize, far if c.target_kl else None
        report = sgd(self.policy, self.optimizer, self.objective, batch, *passes)
        stopped = {"kl_after": reached[-1], "passes": float(len(reached))} if reached else {}
        return {**report, **stopped, "explained_variance": explained_variance(batch), "lr": lr}

    def state_tensors(self) -> dict[str, Tensor]:
        """All that `step` changes besides the policy."""
        return live_tensors(optimizer=self.optimizer, reward_scale=self.reward_scale)
