"""Means over the live rows of a batch, with an explicit denominator; and sums over time.

A reducer maps a loss and its batch to a scalar. Its denominator is that of the whole minibatch, of which the batch may
be a piece (`with_totals`): the losses of the pieces, and so their gradients, add up to that of the minibatch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from proximo.batch import Batch

Reducer = Callable[[Tensor, Batch], Tensor]


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` over the rows where `mask` holds: a scalar, zero where none does.

    Dead rows are replaced, not multiplied: NaN × 0 would be NaN.
    """
    return torch.where(mask, x, 0).sum() / mask.sum().clamp(min=1)


def masked_variance(x: Tensor, mask: Tensor, unbiased: bool = False) -> Tensor:
    """Variance of `x` over the rows where `mask` holds: a scalar."""
    squares = torch.where(mask, x - masked_mean(x, mask), 0).square().sum()
    return squares / (mask.sum() - int(unbiased)).clamp(min=1)


def whiten(x: Tensor, mask: Tensor, shift: bool = True) -> Tensor:
    """`x` scaled to variance 1 over the rows where `mask` holds, and to mean 0 unless `shift` is False; 0 elsewhere.

    The variance is the biased one, and 1e-8 is added to it (Ziegler et al. 2019, arXiv:1909.08593, their code).
    """
    mean = masked_mean(x, mask)
    white = (x - mean) / (masked_variance(x, mask) + 1e-8).sqrt()
    return torch.where(mask, white if shift else white + mean, 0)


def with_totals(batch: Batch) -> Batch:
    """A batch that knows how many live actions and lanes it has, and whose pieces will know it too.

    As columns `total_actions` and `total_lanes`, shaped like the mask: whatever part is taken of the batch, they come
    along. Processes that share a minibatch add up these two numbers, and nothing else, before they part it.
    """
    mask = batch.mask
    totals = {"total_actions": mask.sum(), "total_lanes": live_lanes(mask).sum()}
    return batch.replace(**{name: total.expand(mask.shape) for name, total in totals.items()})


def live_lanes(mask: Tensor) -> Tensor:
    """Which lanes have a live row: [N] of a mask [T, N]. Of [T, N, 2], those whose sides both have one."""
    live = mask.any(0)
    return live.all(-1) if live.dim() > 1 else live


def _total(batch: Batch, name: str, here: Callable[[], Tensor]) -> Tensor:
    known = vars(batch).get(name)
    return (here() if known is None else known.reshape(-1)[0]).clamp(min=1)


def action_mean(x: Tensor, batch: Batch) -> Tensor:
    """The sum of `x`, shaped like the mask, over all live actions, by their number.

    For language: every token weighs the same (DAPO, Yu et al. 2025, arXiv:2503.14476, eq. 8).
    """
    return torch.where(batch.mask, x, 0).sum() / _total(batch, "total_actions", lambda: batch.mask.sum())


def lane_mean(x: Tensor, batch: Batch) -> Tensor:
    """The mean of `x` [N], a number for each lane, over the live lanes: every sequence, or pair, weighs the same."""
    live = live_lanes(batch.mask)
    return torch.where(live, x, 0).sum() / _total(batch, "total_lanes", lambda: live.sum())


def sequence_mean(x: Tensor, batch: Batch) -> Tensor:
    """The mean over live lanes of each lane's mean of `x` [T, N] (GRPO, Shao et al. 2024, arXiv:2402.03300, eq. 3).

    A token of a short sequence weighs more than one of a long sequence.
    """
    return lane_mean(over_time(x, batch.mask) / batch.mask.sum(0).clamp(min=1), batch)


def constant_length(length: int) -> Reducer:
    """The sum of `x` [T, N] over live actions by the number of live lanes times `length`, the most a lane may have.

    What a token weighs depends on no other's length (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783, section 3.2).
    """

    def reduce(x: Tensor, batch: Batch) -> Tensor:
        return lane_mean(over_time(x, batch.mask) / length, batch)

    return reduce


def over_time(x: Tensor, mask: Tensor) -> Tensor:
    """The sum of `x` [T, N, ...] over each lane's live rows: [N, ...]."""
    return torch.where(mask, x, 0).sum(0)


def discounted_sum(x: Tensor, carry: Tensor) -> Tensor:
    """y[t] = x[t] + carry[t] · y[t + 1] along the first dimension, y = 0 after the last; all [T, ...].

    By doubling (Hillis & Steele 1986): after pass k each row holds the sum of the 2ᵏ rows from it on, so that log₂ T
    operations on whole tensors do the work of a loop over T.
    """
    reach = 1
    while reach < len(x):
        x = torch.cat([x[:-reach] + carry[:-reach] * x[reach:], x[-reach:]])
        carry = torch.cat([carry[:-reach] * carry[reach:], torch.zeros_like(carry[-reach:])])
        reach *= 2
    return x
