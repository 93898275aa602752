"""Running statistics that travel with what uses them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from proximo.batch import Batch
from proximo.reduce import discounted_sum


class RunningMoments(nn.Module):
    """Mean and variance of all rows seen, per feature, in float64 (Chan, Golub & LeVeque 1979, parallel update).

    Kept as mean, variance and count, which are 0, 1 and 0 before anything was seen: so every point on the line between
    two states is a state too, and the way from one to the other has no jump (`drift.backtrack` goes it).
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(features, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Take in rows [M, features]."""
        rows = rows.double()
        if not len(rows):
            return
        new_mean = rows.mean(0)
        self.count += len(rows)
        share = len(rows) / self.count
        self.variance.lerp_((rows - new_mean).square().mean(0), share)
        self.variance += (new_mean - self.mean).square() * share * (1 - share)
        self.mean.lerp_(new_mean, share)

    def std(self) -> Tensor:
        """Standard deviation [features]; 1 before anything was seen."""
        return torch.where(self.count > 0, (self.variance + 1e-8).sqrt(), 1.0)


class Normalizer(nn.Module):
    """Centres and scales observations by all that was learned from, clipped to ±`limit`."""

    def __init__(self, features: int, limit: float = 10.0) -> None:
        super().__init__()
        self.moments, self.features, self.limit = RunningMoments(features), features, limit

    def forward(self, observation: Tensor) -> Tensor:
        """[..., features] -> [..., features]."""
        scale = self.moments.std().reciprocal().to(observation.dtype)
        return ((observation - self.moments.mean.to(observation.dtype)) * scale).clamp(-self.limit, self.limit)

    def observe(self, observation: Tensor, mask: Tensor) -> None:
        """Take in the rows of observations [..., features] where mask [...] is True."""
        self.moments.update(observation[mask])


class RewardScale(nn.Module):
    """Divides rewards by the running deviation of the discounted return; never centres them; clips to ±`limit`.

    Engstrom et al. 2020 (arXiv:2005.12729), "reward scaling": R_t = r_t + γ R_{t−1} within an episode.
    """

    def __init__(self, gamma: float, limit: float = 10.0) -> None:
        super().__init__()
        self.gamma, self.limit, self.moments = gamma, limit, RunningMoments(1)
        self.carry: Tensor | None = None  # the open episodes' R [N]; not saved, as episodes begin anew at a checkpoint

    @torch.no_grad()
    def forward(self, batch: Batch) -> Batch:
        """A batch with scaled rewards; its returns, over the live rows, are taken in first."""
        reward = batch.reward.double()
        keep = torch.where(batch.mask, self.gamma * (~batch.start).double(), 1.0)
        own = torch.where(batch.mask, reward, 0)
        own[0] += keep[0] * (0.0 if self.carry is None else self.carry)
        discounted = discounted_sum(own.flip(0), keep.flip(0)).flip(0)
        self.carry = discounted[-1]
        self.moments.update(discounted[batch.mask].unsqueeze(-1))
        return self.scaled(batch)

    def scaled(self, batch: Batch) -> Batch:
        """A batch with rewards scaled as they are by now; nothing is taken in."""
        scaled = batch.reward / self.moments.std().to(batch.reward.dtype)
        return batch.replace(reward=scaled.clamp(-self.limit, self.limit))


class Unscaled(nn.Identity):
    """Rewards as they came."""

    def scaled(self, batch: Batch) -> Batch:
        return batch


def reward_scale(config: Any, device: torch.device) -> RewardScale | Unscaled:
    """What an algorithm's Config asks for."""
    return RewardScale(config.gamma).to(device) if config.normalize_reward else Unscaled()
