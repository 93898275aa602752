"""Terms for tokens and sequences: imitation, and surrogates whose ratio is a sequence's or carries no gradient."""

from __future__ import annotations

from torch import Tensor

from proximo.batch import Batch
from proximo.coefficients import at
from proximo.objectives import Diagnostics, Number, Term, log_ratio, per_action, per_lane, pessimistic
from proximo.policy import Evaluation
from proximo.reduce import Reducer, action_mean, over_time


def nll(reduce: Reducer = action_mean) -> Term:
    """Negative log-likelihood −log π(a|s) of the actions, nats: imitation, or supervised fine-tuning. Reports nll."""

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        return -evaluation.logp, {}

    return per_action("nll", formula, reduce)


def cispo(most: Number, reduce: Reducer = action_mean) -> Term:
    """The score function weighed by a clipped ratio (CISPO, MiniMax 2025, arXiv:2506.13585, eq. 4).

        −min(r, most) A log π(a|s),   r = π(a|s) / π_old(a|s) without gradient

    However far a token moved, its gradient is kept, where `clip` cuts it. Reports what `clip` reports.
    """

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        log = log_ratio(evaluation, batch).detach()
        ratio, bound = log.exp(), at(most, batch)
        loss = -ratio.clamp(max=bound) * batch.advantage * evaluation.logp
        return loss, {"kl": (ratio - 1) - log, "clip_fraction": (ratio > bound).to(loss.dtype)}

    return per_action("policy_loss", formula, reduce)


def sequence_clip(epsilon: Number, high: Number | None = None, mean: bool = True) -> Term:
    """The clipped surrogate with one ratio for a sequence (GSPO, Zheng et al. 2025, arXiv:2507.18071, eq. 5–7).

        −min(s A, clip(s, 1 − ε, 1 + high) A),   s = (π(y|x) / π_old(y|x))^(1/|y|)

    Without `mean` the ratio is not the |y|-th root: that of whole sequences, as in RLOO, whose gradient at s = 1 is
    that of `sequence_score`. A is the mean of a lane's advantages. Reports policy_loss; kl, the estimate
    (r − 1) − log r of KL(π_old ‖ π) in nats, a token's mean in each sequence; clip_fraction, the share of sequences
    outside.
    """

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        log, length = log_ratio(evaluation, batch), batch.mask.sum(0).clamp(min=1)
        ratio = (over_time(log, batch.mask) / (length if mean else 1)).exp()
        below, above = at(epsilon, batch), at(epsilon if high is None else high, batch)
        loss, outside = pessimistic(ratio, lane_advantage(batch), below, above)
        return loss, {"kl": over_time((log.exp() - 1) - log, batch.mask) / length, "clip_fraction": outside}

    return per_lane("policy_loss", formula)


def sequence_score() -> Term:
    """The score function of whole sequences, −log π(y|x) A (RLOO, Ahmadian et al. 2024, arXiv:2402.14740).

    A is the mean of a lane's advantages. Reports policy_loss.
    """

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        return -over_time(evaluation.logp, batch.mask) * lane_advantage(batch), {}

    return per_lane("policy_loss", formula)


def lane_advantage(batch: Batch) -> Tensor:
    """The mean of `advantage` over each lane's live rows: [N]."""
    return over_time(batch.advantage, batch.mask) / batch.mask.sum(0).clamp(min=1)
