"""Means over the live rows of a batch, with an explicit denominator; and sums over time."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of `x` over the rows where `mask` holds: a scalar, zero where none does.

    Dead rows are replaced, not multiplied: NaN × 0 would be NaN.
    """
    return torch.where(mask, x, 0).sum() / mask.sum().clamp(min=1)


def masked_variance(x: Tensor, mask: Tensor, unbiased: bool = False) -> Tensor:
    """Variance of `x` over the rows where `mask` holds: a scalar."""
    squares = torch.where(mask, x - masked_mean(x, mask), 0).square().sum()
    return squares / (mask.sum() - int(unbiased)).clamp(min=1)


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
