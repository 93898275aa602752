"""Advantage estimators: pure functions Batch -> Batch."""

from __future__ import annotations

import torch
from torch import Tensor

from proximo.batch import Batch
from proximo.compiler import whole
from proximo.policy import Policy
from proximo.reduce import discounted_sum, masked_mean, masked_variance


def gae(batch: Batch, gamma: float, lam: float) -> Batch:
    """Generalized advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 11–16).

        δ_t = r_t + γ V(s_{t+1}) (1 − terminated_t) − V(s_t)
        A_t = δ_t + γλ (1 − terminated_t − truncated_t) A_{t+1}

    Reads reward, value, next_value, terminated, truncated, mask, all [T, N]; adds `advantage` and
    `returns` = advantage + value, [T, N]. `next_value` being the value of the true next observation, a truncated
    episode and the last row bootstrap alike. Dead rows get zero and pass nothing on.
    """
    columns = batch.reward, batch.value, batch.next_value, batch.mask, batch.terminated, batch.truncated
    advantage = _gae(*columns, gamma=gamma, lam=lam)
    return batch.replace(advantage=advantage, returns=advantage + batch.value)


@whole
def _gae(
    reward: Tensor, value: Tensor, next_value: Tensor, mask: Tensor, terminated: Tensor, truncated: Tensor, *,
    gamma: float, lam: float,
) -> Tensor:  # fmt: skip
    delta = torch.where(mask, reward + gamma * torch.where(terminated, 0, next_value) - value, 0)
    carry = gamma * lam * (mask & ~(terminated | truncated)).to(delta.dtype)
    return discounted_sum(delta, carry)


@torch.no_grad()
def revalue(policy: Policy, batch: Batch) -> Batch:
    """A batch with `value` and `next_value` [T, N] as the policy's critic sees them now.

    A row's next observation is that of the row after it. Where the batch does not hold it (the last row, and a row
    after which an episode began anew within the step) `next_value` stays what it was.
    """
    value = policy.value(batch.observation)
    following = torch.where(batch.start[1:], batch.next_value[:-1], value[1:])
    return batch.replace(value=value, next_value=torch.cat([following, batch.next_value[-1:]]))


def standardize(batch: Batch) -> Batch:
    """Shift and scale `advantage` to mean 0 and standard deviation 1 over the live rows."""
    mean = masked_mean(batch.advantage, batch.mask)
    std = masked_variance(batch.advantage, batch.mask, unbiased=True).sqrt()
    return batch.replace(advantage=(batch.advantage - mean) / (std + 1e-8))


def explained_variance(batch: Batch) -> Tensor:
    """1 − Var(returns − value) / Var(returns): how much of the returns the old values knew; a scalar.

    NaN where the returns do not vary, since nothing was there to explain.
    """
    return _explained(batch.returns, batch.value, batch.mask)


@whole
def _explained(returns: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    variance = masked_variance(returns, mask)
    return torch.where(variance > 0, 1 - masked_variance(returns - value, mask) / variance, torch.nan)
