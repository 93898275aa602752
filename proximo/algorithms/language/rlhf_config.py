"""The numbers of PPO on language, which several critics share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from proximo.algorithms.language.online import Referred
from proximo.errors import ConfigError
from proximo.objectives import Term


@dataclass(frozen=True)
class Judged(Referred):
    """Learning with a critic."""

    lr: float = 3e-6
    """AdamW's learning rate at the start."""
    epochs: int = 4
    """Passes over the batch in an update."""
    gamma: float = 1.0
    """Discount."""
    lam: float = 0.95
    """GAE's λ: 0 trusts the critic alone, 1 the rewards alone."""
    clip: float = 0.2
    """ε: how far the ratio may move before its gradient is cut."""
    clip_high: float | None = None
    """How far it may move upwards, where that is not ε too."""
    value_clip: float | None = 0.2
    """How far the value may move before its gradient is cut; None lets it go."""
    value_coef: float = 0.1
    """Weight of the value loss ½ (V − R)²."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    whiten_advantages: bool = True
    """Shift and scale advantages to mean 0 and variance 1 over all tokens of the collection."""
    beta: float = 0.05
    """β: weight of KL(π ‖ π_ref), nats; the one at the start where target_kl is set."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where that KL counts: in the reward of every token, or as a term of the loss."""

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"value"}

    def exploring(self, objective: Term, entropy: Term) -> Term:
        """The objective with the entropy bonus, where there is one: over a large vocabulary it is dear to compute."""
        return objective - self.entropy_coef * entropy if self.entropy_coef else objective


@dataclass(frozen=True)
class RLHFConfig(Judged):
    """PPO's own numbers."""

    target_kl: float | None = None
    """KL of whole sequences to the reference, nats, that β is led towards; None keeps β."""
    kl_horizon: int = 10_000
    """Sequences that β takes to answer a KL that is off the target."""
    critic_lam: float | None = None
    """λ of the returns that the critic learns, where that is not lam too (VC-PPO's and VAPO's is 1)."""
    length_alpha: float | None = None
    """α of λ = 1 − 1 / (α · length), in place of lam (VAPO's is 0.05)."""
    value_warmup: int = 0
    """First updates, in which the critic alone learns, from Monte-Carlo returns; a trunk that it shares moves too."""
    whiten_rewards: bool = False
    """Scale rewards to variance 1 over all tokens of the collection."""
    epsilon_hat: bool = False
    """Add Adam's ε where TensorFlow adds it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_kl is not None and not self.beta:
            raise ConfigError("target_kl leads beta, which is 0: give it a number to begin with, such as 0.05")
