"""What the Configs of all on-policy algorithms have, and the bounds of the numbers that they share."""

from __future__ import annotations

from dataclasses import dataclass

from proximo.checks import check

BOUNDS = dict(
    at_least_one=("horizon", "epochs", "minibatches"),
    positive=("lr", "max_grad_norm"),
    unit=("gamma", "lam"),
    not_negative=("value_coef", "entropy_coef"),
    decays=("betas",),
)


@dataclass(frozen=True)
class OnPolicy:
    """How experience is collected and what it is worth."""

    horizon: int = 128
    """Steps each lane takes between two updates (PPO's T)."""
    gamma: float = 0.99
    """Discount."""
    normalize_reward: bool = False
    """Divide rewards by the running deviation of the discounted return."""

    def __post_init__(self) -> None:
        check(self, **{bound: tuple(x for x in names if hasattr(self, x)) for bound, names in BOUNDS.items()})
