"""Several small critics in place of a large one (Asymmetric PPO, Liu et al. 2025, arXiv:2510.01656).

`values` [T, N, K] are what the K critics say, in the batch as in the policy's evaluation; `value` is their mean. Each
learns from a share of every prompt's completions of its own (`split`), so that where they agree the critics have seen
enough, and where they do not the outcome is open (`weigh`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proximo.batch import Batch
from proximo.groups import share
from proximo.objectives import Diagnostics, Number, Term, per_action, value_error
from proximo.policy import Evaluation


def split(batch: Batch) -> Batch:
    """Adds `critic` int64 [T, N]: which of the critics learns from a lane, each from an equal share of every group."""
    return batch.replace(critic=share(batch, batch.values.shape[-1]).expand(batch.mask.shape))


def weigh(batch: Batch, agree: float, differ: float) -> Batch:
    """Leaves out the states that teach least, by the critics' standard deviation.

    `advantage` is 0 in the share `agree` of live rows where they agree most. Adds `open`, shaped like the mask: 0 in
    the share `differ` where they differ most, else 1. Equal deviations fall on the same side.
    """
    spread = batch.values.std(-1, correction=0)
    live = spread[batch.mask].sort().values
    low, high = (live[min(int(part * len(live)), len(live) - 1)] for part in (agree, 1 - differ))
    dull = (spread < low) if agree > 0 else torch.zeros_like(batch.mask)
    wild = (spread > high) if differ > 0 else torch.zeros_like(batch.mask)
    return batch.replace(advantage=batch.advantage.masked_fill(dull, 0), open=(~wild).to(spread.dtype))


def own_value_error(within: Number | None = None) -> Term:
    """`value_error` of the critic that `batch.critic` names in each row; reports value_loss."""
    term = value_error(within)

    def compute(evaluation: Any, batch: Batch) -> tuple[Tensor, Diagnostics]:
        def own(values: Tensor) -> Tensor:
            return values.gather(-1, batch.critic.unsqueeze(-1)).squeeze(-1)

        return term(evaluation._replace(value=own(evaluation.values)), batch.replace(value=own(batch.values)))

    return Term(compute)


def open_entropy() -> Term:
    """`entropy` where `batch.open` is 1, and 0 elsewhere: a mean over all live actions.

    Reports open_entropy, and entropy, that of all states.
    """

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        entropy = evaluation.distribution.entropy()
        return batch.open * entropy, {"entropy": entropy}

    return per_action("open_entropy", formula)
