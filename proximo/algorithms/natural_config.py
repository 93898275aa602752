"""What the Configs of natural gradient and trust region algorithms share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from proximo.algorithms.config import GAE, Descent, Epochs, Moments
from proximo.checks import check


@dataclass(frozen=True)
class Natural(Epochs, Moments, Descent, GAE):
    """How a natural step is found; epochs, minibatches, lr, betas and max_grad_norm are those of the value function."""

    separate_trunks: ClassVar[bool] = True  # fitting the value would move what it shares with the policy, past any δ

    delta: float = 0.01
    """δ: the mean KL of a step, nats, to second order; the damping makes it less."""
    cg_iterations: int = 10
    """Iterations of conjugate gradient, one Fisher-vector product each."""
    cg_damping: float = 0.1
    """What is added to the Fisher matrix's diagonal."""
    fisher_fraction: float = 0.1
    """Share of the rows that the Fisher matrix is estimated from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, at_least_one=("cg_iterations",), positive=("delta", "fisher_fraction"))
        check(self, not_negative=("cg_damping",), unit=("fisher_fraction",))
