"""What the Configs of algorithms share that learn from the policy's own completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from proximo.advantages import sampled_elsewhere
from proximo.algorithms.language.config import Learning
from proximo.batch import Batch
from proximo.errors import ConfigError
from proximo.objectives import Number, Term
from proximo.reduce import Reducer, action_mean
from proximo.reference import ESTIMATORS, Estimator, kl_ref, penalised


@dataclass(frozen=True)
class Online(Learning):
    """Learning from completions that the policy sampled."""

    importance_cap: float | None = None
    """C: weigh by π_old / π_sampler, at most this, where another engine samples (truncated importance sampling)."""
    importance_low: float | None = None
    """Leave out, rather than cap, tokens whose weight lies outside [importance_low, importance_cap] (IcePop)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.importance_low is not None and not self.importance_low < (self.importance_cap or 0):
            raise ConfigError("importance_low must be less than importance_cap: give both, for example 0.5 and 5")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | ({"sampler_logp"} if self.importance_cap else set())

    def corrected(self, batch: Batch) -> Batch:
        """The batch with its advantages weighed for what the sampling engine did otherwise."""
        return sampled_elsewhere(batch, self.importance_cap, self.importance_low) if self.importance_cap else batch


@dataclass(frozen=True)
class Referred(Online):
    """Staying near a frozen reference."""

    beta: float = 0.0
    """β: weight of KL(π ‖ π_ref), nats."""
    kl_in: Literal["reward", "loss"] = "loss"
    """Where that KL counts: in the reward of every token, or as a term of the loss."""
    kl_estimator: Estimator = "k3"
    """How a term of the loss estimates it: k1, k2 or k3."""
    kl_ratio: bool = False
    """Multiply that term by the importance ratio, which makes the gradients of k1 and k3 unbiased; k2 needs none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("kl_in", ("reward", "loss")), ("kl_estimator", tuple(ESTIMATORS))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is {getattr(self, name)!r}: it must be one of {', '.join(known)}")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | ({"ref_logp"} if self.beta else set())

    def rewarded(self, batch: Batch, beta: float | None = None) -> Batch:
        """The batch, the KL in its rewards if it belongs there."""
        return penalised(batch, self.beta if beta is None else beta) if self.beta and self.kl_in == "reward" else batch

    def near_reference(self, objective: Term, reduce: Reducer = action_mean, beta: Number | None = None) -> Term:
        """The objective, with the KL as a term if it belongs there."""
        kl = (self.beta if beta is None else beta) * kl_ref(self.kl_estimator, self.kl_ratio, reduce)
        return objective + kl if self.beta and self.kl_in == "loss" else objective


@dataclass(frozen=True)
class Grouped(Referred):
    """Several completions of every prompt, compared with each other."""

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"group"}
