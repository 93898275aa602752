"""What a frozen reference policy is for: KL to it as a Term, as a part of the reward, and as a number.

`ref_logp`, shaped like the mask, is its log-probability of the actions, with the same temperature as `logp`.
Estimators (Schulman 2020, "Approximating KL divergence"), d = log π_ref(a|s) − log π(a|s), a ~ π:

    k1 = −d            unbiased; of either sign
    k2 = d² / 2        biased
    k3 = eᵈ − 1 − d    unbiased; never negative

As losses they behave otherwise than as numbers. On-policy, k2's expected gradient is that of KL(π ‖ π_ref) in the
states that were visited; k1's is zero, k3's that of KL(π_ref ‖ π). With the importance ratio in front k1's and k3's
are that of KL(π ‖ π_ref).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from proximo.batch import Batch
from proximo.objectives import Diagnostics, Term, log_ratio, per_action
from proximo.policy import Evaluation
from proximo.reduce import Reducer, action_mean, lane_mean, over_time

Estimator = Literal["k1", "k2", "k3"]
ESTIMATORS: dict[Estimator, Callable[[Tensor], Tensor]] = {
    "k1": lambda d: -d,
    "k2": lambda d: d.square() / 2,
    "k3": lambda d: d.expm1() - d,
}


def kl_ref(estimator: Estimator = "k3", ratio: bool = False, reduce: Reducer = action_mean) -> Term:
    """KL(π ‖ π_ref) token by token, nats; `ratio` multiplies by π(a|s) / π_old(a|s), with its gradient.

    k3 without the ratio is GRPO's (Shao et al. 2024, arXiv:2402.03300, eq. 4). A token answers for its own KL alone and
    not for that of tokens after it, so that what is learned is not quite π_ref e^{r/β}; `penalised` learns that.
    Reports kl_ref.
    """

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        d = torch.where(batch.mask, batch.ref_logp - evaluation.logp, 0)  # of dead rows exp may overflow
        kl = ESTIMATORS[estimator](d)
        return (log_ratio(evaluation, batch).exp() * kl if ratio else kl), {}

    return per_action("kl_ref", formula, reduce)


def penalised(batch: Batch, beta: float) -> Batch:
    """Reward r − β (log π_old(a|s) − log π_ref(a|s)) in every live row (Ziegler et al. 2019, arXiv:1909.08593, eq. 2).

    From the log-probabilities that the batch was sampled with: it is a reward, and has no gradient.
    """
    apart = torch.where(batch.mask, batch.logp - batch.ref_logp, 0)
    return batch.replace(reward=batch.reward - beta * apart)


def lane_kl(batch: Batch) -> Tensor:
    """Σ log π_old − log π_ref of each lane, nats, [N]: k1 of whole sequences."""
    return over_time(batch.logp - batch.ref_logp, batch.mask)


def sequence_kl(batch: Batch) -> Tensor:
    """KL(π_old ‖ π_ref) of whole sequences, nats: the SUM of k1 over a lane, the mean over lanes; a scalar."""
    return lane_mean(lane_kl(batch), batch)
