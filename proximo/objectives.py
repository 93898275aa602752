"""Terms: what an algorithm minimises, composed by + and *.

A Term maps (evaluation, batch) to a scalar loss and named diagnostics. A sum or a multiple of Terms is a Term:

    clip(0.2) + 0.5 * value_error() - 0.01 * entropy()
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from proximo.batch import Batch
from proximo.coefficients import Coefficient, at
from proximo.policy import Evaluation
from proximo.reduce import masked_mean

Diagnostics = dict[str, Tensor]
Formula = Callable[[Evaluation, Batch], tuple[Tensor, Diagnostics]]
Reducer = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Term:
    """A scalar to minimise: (evaluation, batch) -> (loss, diagnostics), closed under + and *."""

    compute: Formula

    def __call__(self, evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        return self.compute(evaluation, batch)

    def __add__(self, other: Term) -> Term:
        def total(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
            a, seen = self(evaluation, batch)
            b, more = other(evaluation, batch)
            return a + b, seen | more

        return Term(total)

    def __mul__(self, coefficient: float | Coefficient) -> Term:
        def scaled(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
            loss, seen = self(evaluation, batch)
            return at(coefficient, batch) * loss, seen

        return Term(scaled)

    __rmul__ = __mul__

    def __sub__(self, other: Term) -> Term:
        return self + (-1.0) * other


def per_action(name: str, formula: Formula, reduce: Reducer = masked_mean) -> Term:
    """A Term from a formula that gives one loss per action, [T, N] or [M], and diagnostics of that shape.

    Loss and diagnostics are reduced alike, over the live rows; the loss is reported under `name`, unweighted.
    """

    def compute(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        loss, diagnostics = formula(evaluation, batch)
        loss = reduce(loss, batch.mask)
        with torch.no_grad():
            seen = {key: reduce(value, batch.mask) for key, value in diagnostics.items()}
        return loss, {name: loss.detach()} | seen

    return Term(compute)


def clip(epsilon: float) -> Term:
    """Clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, eq. 7), negated to be minimised.

        −min(r A, clip(r, 1 − ε, 1 + ε) A),   r = π(a|s) / π_old(a|s)

    Reports policy_loss; kl, the estimate (r − 1) − log r of KL(π_old ‖ π) in nats; clip_fraction, the share of
    actions with |r − 1| > ε.
    """

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        log_ratio = torch.where(batch.mask, evaluation.logp - batch.logp, 0)  # of dead rows exp may overflow
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
        loss = -torch.minimum(ratio * batch.advantage, clipped * batch.advantage)
        outside = ((ratio - 1).abs() > epsilon).to(loss.dtype)
        return loss, {"kl": (ratio - 1) - log_ratio, "clip_fraction": outside}

    return per_action("policy_loss", formula)


def surrogate() -> Term:
    """Importance-weighted surrogate −r A, r = π(a|s) / π_old(a|s) (Schulman et al. 2015, arXiv:1502.05477, eq. 14).

    Reports policy_loss; kl, the estimate (r − 1) − log r of KL(π_old ‖ π) in nats.
    """

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        log_ratio = torch.where(batch.mask, evaluation.logp - batch.logp, 0)
        ratio = log_ratio.exp()
        return -ratio * batch.advantage, {"kl": (ratio - 1) - log_ratio}

    return per_action("policy_loss", formula)


def kl_old() -> Term:
    """Exact KL(π_old ‖ π), nats, against the distributions `batch.old`; reports kl_old."""

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        return batch.old.kl(evaluation.distribution), {}

    return per_action("kl_old", formula)


def value_error() -> Term:
    """Half the squared error ½ (V(s) − R)² of the value against `batch.returns`; reports value_loss."""

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        return 0.5 * (evaluation.value - batch.returns).square(), {}

    return per_action("value_loss", formula)


def entropy() -> Term:
    """Entropy of the policy, nats; subtract it to explore. Reports entropy."""

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        return evaluation.distribution.entropy(), {}

    return per_action("entropy", formula)
