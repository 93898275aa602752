"""Terms: what an algorithm minimises, composed by + and *.

A Term maps (evaluation, batch) to a scalar loss and named diagnostics. A sum or a multiple of Terms is a Term:

    clip(0.2) + 0.5 * value_error() - 0.01 * entropy()
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proximo.batch import Batch
from proximo.coefficients import Coefficient, at
from proximo.policy import Evaluation
from proximo.reduce import Reducer, action_mean, lane_mean

Diagnostics = dict[str, Tensor]
Formula = Callable[[Evaluation, Batch], tuple[Tensor, Diagnostics]]
Number = float | Coefficient


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

    def __mul__(self, coefficient: Number) -> Term:
        def scaled(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
            loss, seen = self(evaluation, batch)
            return at(coefficient, batch) * loss, seen

        return Term(scaled)

    __rmul__ = __mul__

    def __sub__(self, other: Term) -> Term:
        return self + (-1.0) * other


def per_action(name: str, formula: Formula, reduce: Reducer = action_mean) -> Term:
    """A Term from a formula that gives one loss per action, [T, N] or [M], and diagnostics of that shape.

    The loss is reduced over the live rows by `reduce` and reported under `name`, unweighted. Diagnostics are means
    over live actions, however the loss is reduced.
    """

    def compute(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        loss, diagnostics = formula(evaluation, batch)
        loss = reduce(loss, batch)
        with torch.no_grad():
            seen = {key: action_mean(value, batch) for key, value in diagnostics.items()}
        return loss, {name: loss.detach()} | seen

    return Term(compute)


def per_lane(name: str, formula: Formula) -> Term:
    """A Term from a formula that gives one loss per lane, [N], and diagnostics of that shape: means over live lanes."""

    def compute(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        loss, diagnostics = formula(evaluation, batch)
        loss = lane_mean(loss, batch)
        with torch.no_grad():
            seen = {key: lane_mean(value, batch) for key, value in diagnostics.items()}
        return loss, {name: loss.detach()} | seen

    return Term(compute)


def score(reduce: Reducer = action_mean) -> Term:
    """The score function's loss −log π(a|s) A (Williams 1992, REINFORCE), whose gradient is the policy gradient.

    Reports policy_loss.
    """

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        return -evaluation.logp * batch.advantage, {}

    return per_action("policy_loss", formula, reduce)


def surrogate() -> Term:
    """Importance-weighted surrogate −r A, r = π(a|s) / π_old(a|s) (Schulman et al. 2015, arXiv:1502.05477, eq. 14).

    Reports policy_loss; kl, the estimate (r − 1) − log r of KL(π_old ‖ π) in nats.
    """

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        ratio, kl = _ratio(evaluation, batch)
        return -ratio * batch.advantage, {"kl": kl}

    return per_action("policy_loss", formula)


def clip(epsilon: Number, high: Number | None = None, reduce: Reducer = action_mean) -> Term:
    """Clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, eq. 7), negated to be minimised.

        −min(r A, clip(r, 1 − ε, 1 + ε) A),   r = π(a|s) / π_old(a|s)

    With `high` the ratio is clipped to [1 − ε, 1 + high] instead (DAPO, Yu et al. 2025, arXiv:2503.14476).

    Reports policy_loss; kl, the estimate (r − 1) − log r of KL(π_old ‖ π) in nats; clip_fraction, the share of
    actions whose ratio lies outside.
    """

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        return _clipped(evaluation, batch, epsilon, high)

    return per_action("policy_loss", formula, reduce)


def dual_clip(epsilon: Number, bound: Number, high: Number | None = None, reduce: Reducer = action_mean) -> Term:
    """Dual-clipped surrogate (Ye et al. 2020, arXiv:1912.09729): a bad action costs no more than `bound` · |A|.

        −max(min(r A, clip(r, 1 − ε, 1 + ε) A), c A)  where A < 0, else as in `clip`;   c > 1

    However large the ratio of a bad action, its gradient is then cut. Reports what `clip` reports.
    """

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        loss, seen = _clipped(evaluation, batch, epsilon, high)
        most = -at(bound, batch) * batch.advantage
        return torch.where(batch.advantage < 0, torch.minimum(loss, most), loss), seen

    return per_action("policy_loss", formula, reduce)


def log_ratio(evaluation: Evaluation, batch: Batch) -> Tensor:
    """log π(a|s) / π_old(a|s), shaped like the mask; 0 in dead rows, whose ratio may overflow."""
    return torch.where(batch.mask, evaluation.logp - batch.logp, 0)


def _ratio(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Tensor]:
    """r = π(a|s) / π_old(a|s), and the estimate (r − 1) − log r of KL(π_old ‖ π) in nats."""
    log = log_ratio(evaluation, batch)
    ratio = log.exp()
    return ratio, (ratio - 1) - log


def _clipped(evaluation: Evaluation, batch: Batch, low: Number, high: Number | None) -> tuple[Tensor, Diagnostics]:
    ratio, kl = _ratio(evaluation, batch)
    loss, outside = pessimistic(ratio, batch.advantage, at(low, batch), at(low if high is None else high, batch))
    return loss, {"kl": kl, "clip_fraction": outside}


def pessimistic(ratio: Tensor, advantage: Tensor, below: Any, above: Any) -> tuple[Tensor, Tensor]:
    """−min(r A, clip(r, 1 − below, 1 + above) A), and 1 where r lies outside, else 0; all of one shape."""
    clipped = ratio.clamp(min=1 - below).clamp(max=1 + above)
    loss = -torch.minimum(ratio * advantage, clipped * advantage)
    return loss, ((ratio - 1 > above) | (1 - ratio > below)).to(loss.dtype)


def fisher_rao() -> Term:
    """An eighth of the squared Fisher–Rao distance between π_old² and π² (Lascu et al. 2025, arXiv:2506.03757, eq. 16).

        ⅛ FR²(π², π_old²) = ½ ∫ (π(a|s) − π_old(a|s))² da = ½ E[(r − 1)² π_old(a|s)],   a ~ π_old

    since FR²(μ, ν) = 4 ∫ (√μ − √ν)²; the mean over the batch weighs states by how often they were visited. A density
    has a unit: that of a wide or many-dimensional Gaussian is small, and so is its distance. Reports fisher_rao.
    """

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        ratio, _ = _ratio(evaluation, batch)
        density = torch.where(batch.mask, batch.logp, 0).clamp(max=80).exp()  # float32 ends at e^88
        return 0.5 * (ratio - 1).square() * density, {}

    return per_action("fisher_rao", formula)


def kl_old() -> Term:
    """Exact KL(π_old ‖ π), nats, against the distributions `batch.old`; reports kl_old."""

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        return batch.old.kl(evaluation.distribution), {}

    return per_action("kl_old", formula)


def value_error(within: Number | None = None) -> Term:
    """Half the squared error ½ (V(s) − R)² of the value against `batch.returns`; reports value_loss.

    `within` is PPO's value clipping (OpenAI baselines, ppo2): the error of V kept to `batch.value` ± within counts
    where it is the larger one, so that nothing is gained by moving further.
    """

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        error = (evaluation.value - batch.returns).square()
        if within is not None:
            moved, most = evaluation.value - batch.value, at(within, batch)
            error = torch.maximum(
                error, (batch.value + moved.clamp(min=-most).clamp(max=most) - batch.returns).square()
            )
        return 0.5 * error, {}

    return per_action("value_loss", formula)


def entropy() -> Term:
    """Entropy of the policy, nats; subtract it to explore. Reports entropy."""

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        return evaluation.distribution.entropy(), {}

    return per_action("entropy", formula)


def told(term: Term) -> Term:
    """A Term that is reported and not minimised."""

    def compute(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        with torch.no_grad():
            _, seen = term(evaluation, batch)
        return torch.zeros_like(evaluation.value.sum()), seen

    return Term(compute)
