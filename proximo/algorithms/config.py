"""What the Configs of on-policy algorithms share: each extends those of these that it uses, and adds its own."""

from __future__ import annotations

from dataclasses import dataclass

from proximo.algorithms.on_policy import OnPolicy
from proximo.coefficients import linear


@dataclass(frozen=True)
class GAE(OnPolicy):
    """How advantages are estimated."""

    lam: float = 0.95
    """GAE's λ: 0 trusts the critic alone, 1 the rewards alone."""


@dataclass(frozen=True)
class Descent(OnPolicy):
    """How far a gradient step goes."""

    lr: float = 2.5e-4
    """The optimizer's learning rate at the start."""
    anneal_lr: bool = True
    """Let the learning rate fall linearly to zero over the run."""
    max_grad_norm: float = 0.5
    """Longest gradient (L2) that is not shortened."""

    def lr_at(self, progress: float) -> float:
        """The learning rate when this share of the run is done."""
        return linear(self.lr, 0.0, progress) if self.anneal_lr else self.lr


@dataclass(frozen=True)
class Moments(OnPolicy):
    """What Adam keeps of past gradients."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's β₁ and β₂, the decay of its moments; equal ones, 0.99 0.99, are milder where the task changes."""


@dataclass(frozen=True)
class Epochs(OnPolicy):
    """How often a batch is learned from."""

    epochs: int = 4
    """Passes over the batch in an update (PPO's K)."""
    minibatches: int = 4
    """Equal parts of the batch in a pass, one gradient step each."""


@dataclass(frozen=True)
class Losses(OnPolicy):
    """What is minimised besides the policy's own loss."""

    value_coef: float = 0.5
    """Weight of the value loss ½ (V − R)² (PPO's c1; Stable-Baselines3's vf_coef is half of it)."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus (PPO's c2)."""


@dataclass(frozen=True)
class Proximal(Losses, Epochs, Moments, Descent, GAE):
    """All of it: what PPO and its variants have in common."""
