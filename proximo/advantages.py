"""Advantage estimators: pure functions Batch -> Batch."""

from __future__ import annotations

import torch
from torch import Tensor

from proximo.batch import Batch
from proximo.reduce import discounted_sum, masked_mean, masked_variance


def gae(batch: Batch, gamma: float, lam: float) -> Batch:
    """Generalized advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 11–16).

        δ_t = r_t + γ V(s_{t+1}) (1 − terminated_t) − V(s_t)
        A_t = δ_t + γλ (1 − terminated_t − truncated_t) A_{t+1}

    Reads reward, value, next_value, terminated, truncated, mask, all [T, N]; adds `advantage` and
    `returns` = advantage + value, [T, N]. `next_value` being the value of the true next observation, a truncated
    episode and the last row bootstrap alike. Dead rows get zero and pass nothing on.
    """
    next_value = torch.where(batch.terminated, 0, batch.next_value)
    delta = torch.where(batch.mask, batch.reward + gamma * next_value - batch.value, 0)
    carry = gamma * lam * (batch.mask & ~(batch.terminated | batch.truncated)).to(delta.dtype)
    advantage = discounted_sum(delta, carry)
    return batch.replace(advantage=advantage, returns=advantage + batch.value)


def standardize(batch: Batch) -> Batch:
    """Shift and scale `advantage` to mean 0 and standard deviation 1 over the live rows."""
    mean = masked_mean(batch.advantage, batch.mask)
    std = masked_variance(batch.advantage, batch.mask, unbiased=True).sqrt()
    return batch.replace(advantage=(batch.advantage - mean) / (std + 1e-8))


def explained_variance(batch: Batch) -> Tensor:
    """1 − Var(returns − value) / Var(returns): how much of the returns the old values knew; a scalar.

    NaN where the returns do not vary, since nothing was there to explain.
    """
    variance = masked_variance(batch.returns, batch.mask)
    error = masked_variance(batch.returns - batch.value, batch.mask)
    return torch.where(variance > 0, 1 - error / variance, torch.nan)
