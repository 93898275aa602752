"""Advantage estimators: pure functions Batch -> Batch."""

from __future__ import annotations

import torch
from torch import Tensor

from proximo.batch import Batch
from proximo.compiler import whole
from proximo.reduce import discounted_sum, masked_mean, masked_variance

SAME = 1e-6  # of their mean: the deviation up to which numbers in float32 are taken to be the same


def gae(batch: Batch, gamma: float, lam: float | Tensor) -> Batch:
    """Generalized advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 11–16).

        δ_t = r_t + γ V(s_{t+1}) (1 − terminated_t) − V(s_t)
        A_t = δ_t + γλ (1 − terminated_t − truncated_t) A_{t+1}

    Reads reward, value, next_value, terminated, truncated, mask, all [T, N]; adds `advantage` and
    `returns` = advantage + value, [T, N]. `next_value` being the value of the true next observation, a truncated
    episode and the last row bootstrap alike. Dead rows get zero and pass nothing on. A tensor λ [N] has one for each
    lane.
    """
    columns = batch.reward, batch.value, batch.next_value, batch.mask, batch.terminated, batch.truncated
    if isinstance(lam, Tensor):
        advantage = _gae(*columns, gamma=gamma, lam=lam)
    else:
        advantage = _gae_at_once(*columns, gamma=gamma, lam=lam)
    return batch.replace(advantage=advantage, returns=advantage + batch.value)


def monte_carlo(batch: Batch, gamma: float, baseline: bool = True) -> Batch:
    """Rewards to go (Williams 1992): what followed each action, discounted, up to the end of its episode.

        R_t = r_t + γ r_{t+1} + … + γ^k r_{t+k}                        the episode terminates at t + k
        R_t = r_t + γ r_{t+1} + … + γ^k (r_{t+k} + γ V(s_{t+k+1}))     it is cut there

    An episode is cut where it is truncated and at the last row; V is then `next_value`, that of the true final
    observation. Reads the columns that `gae` reads; adds `returns` R and `advantage` R − V(s), or R itself without the
    baseline, [T, N]. Dead rows get zero and pass nothing on.
    """
    columns = batch.reward, batch.next_value, batch.mask, batch.terminated, batch.truncated
    returns = _rewards_to_go(*columns, gamma=gamma)
    advantage = torch.where(batch.mask, returns - batch.value, 0) if baseline else returns
    return batch.replace(advantage=advantage, returns=returns)


@whole
def _rewards_to_go(
    reward: Tensor, next_value: Tensor, mask: Tensor, terminated: Tensor, truncated: Tensor, *, gamma: float
) -> Tensor:
    alive_next = torch.cat([mask[1:], torch.zeros_like(mask[-1:])])
    goes_on = mask & alive_next & ~(terminated | truncated)
    last = torch.where(terminated | goes_on, 0, next_value)
    return discounted_sum(torch.where(mask, reward + gamma * last, 0), gamma * goes_on.to(reward.dtype))


def _gae(
    reward: Tensor, value: Tensor, next_value: Tensor, mask: Tensor, terminated: Tensor, truncated: Tensor, *,
    gamma: float, lam: float | Tensor,
) -> Tensor:  # fmt: skip
    delta = torch.where(mask, reward + gamma * torch.where(terminated, 0, next_value) - value, 0)
    carry = gamma * lam * (mask & ~(terminated | truncated)).to(delta.dtype)
    return discounted_sum(delta, carry)


_gae_at_once = whole(_gae)


def decoupled_gae(batch: Batch, gamma: float, lam: float | Tensor, critic_lam: float) -> Batch:
    """`advantage` by one λ and `returns` by another, the critic's (VC-PPO, Yuan et al. 2025, arXiv:2503.01491).

    With critic_lam = 1 the critic learns from the rewards alone, which bias nothing.
    """
    returns = gae(batch, gamma, critic_lam).returns
    return gae(batch, gamma, lam).replace(returns=returns)


def length_adaptive(batch: Batch, alpha: float) -> Tensor:
    """λ = 1 − 1 / (α · length) for each lane [N], 0 or more (VAPO, Yue et al. 2025, arXiv:2504.05118).

    A last reward then reaches back over about the same share of every sequence, however long it is.
    """
    return (1 - 1 / (alpha * batch.mask.sum(0)).clamp(min=1)).to(batch.reward.dtype)


def sampled_elsewhere(batch: Batch, cap: float, least: float | None = None) -> Batch:
    """Advantages weighed by w = π_old(a|s) / π_sampler(a|s), where another engine sampled than the one that learns.

        min(w, cap)                          truncated importance sampling (Ionides 2008; Yao et al. 2025)
        w where least ≤ w ≤ cap, else 0      IcePop (Ling team 2025, arXiv:2510.18855), with `least`

    Reads `sampler_logp` [T, N], what the engine says it sampled with, and `logp`, the learner's own; exchanges
    `advantage`, before an update.
    """
    weight = torch.where(batch.mask, batch.logp - batch.sampler_logp, 0).exp()
    inside = weight <= cap if least is None else (weight >= least) & (weight <= cap)
    weight = torch.where(inside, weight, cap if least is None else 0)
    return batch.replace(advantage=batch.advantage * weight)


def vtrace(
    batch: Batch, logp: Tensor, gamma: float, lam: float = 1.0, rho_bar: float = 1.0, c_bar: float = 1.0
) -> Batch:
    """V-trace (Espeholt et al. 2018, arXiv:1802.01561, eq. 1 and section 4.2): advantages of another policy's actions.

        ρ_t = min(ρ̄, π(a_t|s_t) / μ(a_t|s_t)),   c_t = λ min(c̄, π(a_t|s_t) / μ(a_t|s_t))
        v_t = V(s_t) + e_t,   e_t = ρ_t δ_t + γ c_t (1 − terminated_t − truncated_t) e_{t+1}
        A_t = ρ_t (δ_t + γλ (1 − terminated_t − truncated_t) e_{t+1}),   δ_t as in `gae`

    `logp` [T, N] is that of the policy π that learns; `batch.logp` that of the policy μ that collected. `value` is
    today's critic's, and so is `next_value` but where `revalue` leaves what the critic of then said. Adds `advantage`
    A, `returns` v and `weight` ρ, [T, N], and exchanges `logp`: A holds the correction, and what follows takes the
    batch for one of π's own (as the decoupled objective of Hilton et al. 2021, arXiv:2110.00641). Where π is μ this is
    `gae`. For λ < 1 the next state's target is the λ-mixture of v and V, which for λ = 1 is the paper's. Dead rows get
    zero and pass nothing on. To shift and scale A takes `standardize_weighted`.
    """
    columns = batch.reward, batch.value, batch.next_value, batch.mask, batch.terminated, batch.truncated
    found = _vtrace(*columns, logp, batch.logp, gamma=gamma, lam=lam, rho_bar=rho_bar, c_bar=c_bar)
    advantage, excess, weight = found.unbind()
    return batch.replace(advantage=advantage, returns=excess + batch.value, weight=weight, logp=logp)


@whole
def _vtrace(
    reward: Tensor, value: Tensor, next_value: Tensor, mask: Tensor, terminated: Tensor, truncated: Tensor,
    logp: Tensor, behaviour: Tensor, *, gamma: float, lam: float, rho_bar: float, c_bar: float,
) -> Tensor:  # fmt: skip
    delta = torch.where(mask, reward + gamma * torch.where(terminated, 0, next_value) - value, 0)
    carry = gamma * lam * (mask & ~(terminated | truncated)).to(delta.dtype)
    ratio = torch.where(mask, logp - behaviour, 0).exp()
    rho, c = ratio.clamp(max=rho_bar), ratio.clamp(max=c_bar)
    excess = discounted_sum(rho * delta, carry * c)
    following = torch.cat([excess[1:], torch.zeros_like(excess[:1])])
    return torch.stack([rho * (delta + carry * following), excess, rho])


def revalue(batch: Batch, value: Tensor) -> Batch:
    """A batch with `value` [T, N], the critic's opinion of today, and `next_value` from it.

    A row's next observation is that of the row after it. Where the batch does not hold it (the last row, and a row
    after which an episode began anew within the step) `next_value` stays what it was: the opinion of the critic that
    the batch was collected with.
    """
    following = torch.where(batch.start[1:], batch.next_value[:-1], value[1:])
    return batch.replace(value=value, next_value=torch.cat([following, batch.next_value[-1:]]))


def standardize(batch: Batch) -> Batch:
    """Shift and scale `advantage` to mean 0 and deviation 1 over the live rows; to 0 where all are the same."""
    mean = masked_mean(batch.advantage, batch.mask)
    return _scaled(batch, batch.advantage - mean, mean)


def standardize_weighted(batch: Batch) -> Batch:
    """ρ (Â − m) / s for the `advantage` ρ Â and `weight` ρ of `vtrace`: mean 0, deviation 1; 0 where Â is one number.

    m = Σ ρ Â / Σ ρ over the live rows. A constant taken off ρ Â itself would be no baseline, and push towards the
    actions that π takes more often than μ did: E_μ[∇ log π] is not 0, E_μ[ρ ∇ log π] is, where ρ̄ cuts nothing.
    """
    mean = masked_mean(batch.advantage, batch.mask)
    usual = masked_mean(batch.weight, batch.mask).clamp(min=torch.finfo(mean.dtype).tiny)
    return _scaled(batch, batch.advantage - batch.weight * (mean / usual), mean)


def _scaled(batch: Batch, centred: Tensor, mean: Tensor) -> Batch:
    """The batch with the advantages `centred`, whose mean was `mean`, at deviation 1."""
    centred = centred - masked_mean(centred, batch.mask)  # the rounding of a sum of many numbers
    std = masked_variance(centred, batch.mask, unbiased=True).sqrt()
    same = std <= SAME * mean.abs()
    return batch.replace(advantage=centred / torch.where(same, torch.inf, std + 1e-8))


def explained_variance(batch: Batch) -> Tensor:
    """1 − Var(returns − value) / Var(returns): how much of the returns the old values knew; a scalar.

    NaN where the returns do not vary, since nothing was there to explain.
    """
    return _explained(batch.returns, batch.value, batch.mask)


@whole
def _explained(returns: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    variance = masked_variance(returns, mask)
    return torch.where(variance > 0, 1 - masked_variance(returns - value, mask) / variance, torch.nan)
