"""Means over the live rows of a batch. Every loss and statistic is reduced here, with an explicit denominator."""

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
