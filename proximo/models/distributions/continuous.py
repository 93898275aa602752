"""Normal distributions over boxes, squashed into their bounds or not, and their heads."""

from __future__ import annotations

import math
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from proximo.errors import ConfigError, UnsupportedSpace

LOG_STD = (-10.0, 2.0)  # where a deviation that depends on the state is clamped
# Weights and deviations of five normal distributions whose mixture is the logistic one with scale ½, see `log_cosh`.
MIXTURE = (
    (0.0641569765, 0.4623602057),
    (0.3497500298, 0.6542389335),
    (0.4147081207, 0.9211555487),
    (0.1583423745, 1.2924609629),
    (0.0130424985, 1.8083897126),
)


class Gaussian(NamedTuple):
    """Independent normal coordinates. `mean` [..., k], `log_std` broadcasts to it; actions are [..., k]."""

    mean: Tensor
    log_std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std · noise, noise standard normal [..., k]."""
        return self.mean + self.log_std.exp() * noise

    def mode(self) -> Tensor:
        return self.mean

    def logp(self, action: Tensor) -> Tensor:
        z = (action - self.mean) * (-self.log_std).exp()
        return (-0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        each = self.log_std + 0.5 * math.log(2 * math.pi * math.e)
        return each.expand_as(self.mean).sum(-1)

    def slope(self) -> Tensor:
        """How many deviations it takes if all means of the batch change by the largest of them, or by 1 [...]."""
        largest = 1 + self.mean.abs().amax()
        return largest * (-2 * self.log_std).exp().expand_as(self.mean).sum(-1).sqrt()

    def kl(self, other: Gaussian) -> Tensor:
        ratio = (2 * (self.log_std - other.log_std)).exp()
        distance = ((self.mean - other.mean) * (-other.log_std).exp()).square()
        return (0.5 * (ratio + distance - 1) - (self.log_std - other.log_std)).sum(-1)


class SquashedGaussian(NamedTuple):
    """tanh of independent normal coordinates (Haarnoja et al. 2018, arXiv:1801.01290, appendix C).

    Actions are u [..., k], before the tanh; densities are those of tanh u, over (−1, 1)ᵏ.
    """

    base: Gaussian

    def sample(self, noise: Tensor) -> Tensor:
        """Before the tanh: mean + std · noise, noise standard normal [..., k]."""
        return self.base.sample(noise)

    def mode(self) -> Tensor:
        """The median, which is what is customary; the density may have two peaks in a coordinate, at the bounds."""
        return self.base.mode()

    def slope(self) -> Tensor:
        return self.base.slope()

    def logp(self, action: Tensor) -> Tensor:
        """log N(u) − Σ log tanh′(u), where log tanh′(u) = 2 (log 2 − u − softplus(−2u)) for every u."""
        log_slope = 2 * (math.log(2) - action + logsigmoid(2 * action))
        return self.base.logp(action) - log_slope.sum(-1)

    def entropy(self) -> Tensor:
        """H(u) + Σ E[log tanh′(u)], within 10⁻⁶ nats a coordinate: log tanh′ is −2 log cosh."""
        return self.base.entropy() - 2 * log_cosh(self.base.mean, self.base.log_std.exp()).sum(-1)

    def kl(self, other: SquashedGaussian) -> Tensor:
        """That of the normal distributions: a bijection leaves KL as it is."""
        return self.base.kl(other.base)


def log_cosh(mean: Tensor, std: Tensor) -> Tensor:
    """E[log cosh u] for u normal, elementwise; the error is below 4.1·10⁻⁷ for every mean and deviation.

    log cosh u + log 2 is E|u + l|, l logistic with scale ½, since both have the second derivative sech² u. A logistic
    distribution is a scale mixture of normal ones (Andrews and Mallows 1974) and close to one of a few (Monahan and
    Stefanski 1992), and E|u + s z| is in closed form, also for u normal. `MIXTURE` minimises the greatest error.
    """
    total = torch.zeros_like(mean)
    for weight, scale in MIXTURE:
        spread = (std.square() + scale**2).sqrt()
        z = mean / (math.sqrt(2) * spread)
        total = total + weight * (math.sqrt(2 / math.pi) * spread * (-z.square()).exp() + mean * z.erf())
    return total - math.log(2)


class Bounds:
    """A box's rule for units: a coordinate bounded on both sides is scaled, so that the policy's −1 and 1 are its low
    and high; a coordinate with an infinite side keeps the environment's units. For the environment alone, every action
    is clipped to the box; the policy learns from what it drew. Boxes of integers or bools get the nearest one.
    """

    def __init__(self, space: gym.spaces.Box) -> None:
        self.shape, self.dtype, self.numbers = space.shape, space.dtype, math.prod(space.shape)
        self.low, self.high = space.low.astype(np.float64), space.high.astype(np.float64)
        bounded = np.isfinite(self.low) & np.isfinite(self.high)
        low, high = np.where(bounded, self.low, -1.0), np.where(bounded, self.high, 1.0)
        self.centre, self.reach, self.everywhere = low / 2 + high / 2, high / 2 - low / 2, bool(bounded.all())

    def to_env(self, action: np.ndarray) -> np.ndarray:
        """[N, k] in the policy's units -> [N, *shape] in the environment's."""
        scaled = self.centre + self.reach * action.reshape(-1, *self.shape)
        inside = np.clip(scaled, self.low, self.high)
        if self.dtype.kind in "biu":
            inside = np.rint(inside)
        return inside.astype(self.dtype)

    def required(self, kind: str, space: gym.Space) -> None:
        """UnsupportedSpace unless every coordinate is bounded on both sides."""
        if not self.everywhere:
            raise UnsupportedSpace(
                f"action space {space} has infinite bounds, which distribution {kind} cannot have: take gaussian, or "
                "give the space bounds"
            )


class GaussianHead(nn.Module):
    """Box of any shape, in the units of `Bounds`: normal, with a state-independent deviation, which is learned."""

    def __init__(self, space: gym.spaces.Box, log_std_init: float = 0.0) -> None:
        super().__init__()
        self.bounds = Bounds(space)
        self.outputs = self.bounds.numbers
        self.log_std = nn.Parameter(torch.full((self.outputs,), float(log_std_init)))

    def forward(self, outputs: Tensor) -> Gaussian:
        return Gaussian(outputs, self.log_std.expand_as(outputs))

    def noise(self, *shape: int, device: torch.device) -> Tensor:
        return torch.randn(*shape, self.outputs, device=device)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        return self.bounds.to_env(action)


class StateGaussianHead(nn.Module):
    """Box of any shape, in the units of `Bounds`: normal, the network's outputs being means and log deviations.

    Log deviations are `log_std_init` where the network says 0, and clamped to `LOG_STD`; there is no gradient beyond.
    """

    def __init__(self, space: gym.spaces.Box, log_std_init: float = 0.0) -> None:
        super().__init__()
        low, high = LOG_STD
        if not low <= log_std_init <= high:
            where = "where the network gives deviations"
            raise ConfigError(f"log_std_init is {log_std_init}: it must be between {low:g} and {high:g} {where}")
        self.bounds, self.log_std_init = Bounds(space), log_std_init
        self.outputs = 2 * self.bounds.numbers

    def forward(self, outputs: Tensor) -> Gaussian:
        mean, more = outputs.chunk(2, -1)
        return Gaussian(mean, (self.log_std_init + more).clamp(*LOG_STD))

    def noise(self, *shape: int, device: torch.device) -> Tensor:
        return torch.randn(*shape, self.bounds.numbers, device=device)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        return self.bounds.to_env(action)


class SquashedGaussianHead(nn.Module):
    """A Box that is bounded everywhere: tanh of what another head draws, −1 and 1 being the bounds."""

    def __init__(self, space: gym.spaces.Box, base: GaussianHead | StateGaussianHead) -> None:
        super().__init__()
        base.bounds.required("squashed", space)
        self.base, self.outputs = base, base.outputs

    def forward(self, outputs: Tensor) -> SquashedGaussian:
        return SquashedGaussian(self.base(outputs))

    def noise(self, *shape: int, device: torch.device) -> Tensor:
        return self.base.noise(*shape, device=device)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        return self.base.to_env(np.tanh(action))
