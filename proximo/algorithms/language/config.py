"""What the Configs of all algorithms of language have: how a batch is learned from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from proximo.batch import Batch
from proximo.checks import check
from proximo.coefficients import linear
from proximo.errors import ConfigError
from proximo.models.language.rows import together
from proximo.objectives import Term
from proximo.policy import Policy
from proximo.updaters.adam import Adam
from proximo.updaters.sgd import sgd

Metrics = dict[str, Tensor | float]
BOUNDS = dict(
    at_least_one=("epochs", "minibatches", "micro_batch", "kl_horizon", "max_length"),
    positive=("lr", "max_grad_norm", "clip", "clip_high", "value_clip", "ratio_bound", "target_kl", "importance_cap",
              "length_alpha"),
    not_negative=("weight_decay", "beta", "importance_low", "value_coef", "entropy_coef", "centering", "value_warmup"),
    unit=("gamma", "lam", "critic_lam", "agree", "differ"),
    decays=("betas",),
)  # fmt: skip


@dataclass(frozen=True)
class Learning:
    """How a batch is learned from."""

    lr: float = 1e-6
    """AdamW's learning rate at the start."""
    anneal_lr: bool = True
    """Let the learning rate fall linearly to zero over the run."""
    max_grad_norm: float = 1.0
    """Longest gradient (L2) that is not shortened."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's β₁ and β₂, the decay of its moments."""
    weight_decay: float = 0.0
    """Share of every weight that goes in a step, times the learning rate."""
    epochs: int = 1
    """Passes over the batch in an update."""
    minibatches: int = 1
    """Equal parts of the batch in a pass, one gradient step each."""
    micro_batch: int | None = None
    """Sequences (or pairs) of a minibatch evaluated at once; None: as many as a CPU's cache holds, on a GPU all."""

    def __post_init__(self) -> None:
        def given(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(name for name in names if getattr(self, name, None) is not None)

        check(self, **{bound: given(names) for bound, names in BOUNDS.items()})

    @property
    def needs(self) -> frozenset[str]:
        """The columns that an algorithm with these numbers reads, besides those that every batch has."""
        return frozenset()

    def adam(self, policy: Policy, eps: float = 1e-8, epsilon_hat: bool = False) -> Adam:
        """AdamW with these numbers."""
        return Adam(policy, eps=eps, betas=self.betas, weight_decay=self.weight_decay, epsilon_hat=epsilon_hat)

    def descend(self, policy: Policy, optimizer: Adam, objective: Term, batch: Batch, progress: float) -> Metrics:
        """One update, by `sgd`, at the learning rate of this share of the run; what it reports, and lr."""
        lr = optimizer.lr = linear(self.lr, 0.0, progress) if self.anneal_lr else self.lr
        passes = self.epochs, self.minibatches, self.max_grad_norm
        micro = self.micro_batch or together(batch, getattr(policy, "vocabulary", 1))
        return {**sgd(policy, optimizer, objective, batch, *passes, micro=micro), "lr": lr}


def must_weigh_tokens(config: Any) -> None:
    """ConfigError where a correction of tokens is asked of an algorithm whose ratio is that of a sequence."""
    if config.importance_cap is not None:
        raise ConfigError("importance_cap weighs tokens, and here a sequence has one ratio: leave it out")
