"""Distributions over actions, and the heads that make them from a network's outputs.

All randomness comes from outside, as noise drawn beforehand. A head is a module, for those with parameters of their
own: `outputs` numbers of the network -> distribution; `noise(*shape)` for its samples; `to_env(action)`, [N, ...], in
the environment's units.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from proximo.errors import UnsupportedSpace


class Categorical(NamedTuple):
    """One of n choices. `logp_all` [..., n] are normalised log-probabilities; actions are int64 [...]."""

    logp_all: Tensor

    @classmethod
    def from_logits(cls, logits: Tensor) -> Categorical:
        return cls(logits.log_softmax(-1))

    def sample(self, noise: Tensor) -> Tensor:
        """The Gumbel-max trick: argmax(log p + g), g standard Gumbel noise [..., n]."""
        return (self.logp_all + noise).argmax(-1)

    def mode(self) -> Tensor:
        return self.logp_all.argmax(-1)

    def logp(self, action: Tensor) -> Tensor:
        return self.logp_all.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        return -(self.logp_all.exp() * self.logp_all).sum(-1)

    def kl(self, other: Categorical) -> Tensor:
        return (self.logp_all.exp() * (self.logp_all - other.logp_all)).sum(-1)


class CategoricalHead(nn.Module):
    """Discrete: one choice; the first option is the space's `start`."""

    def __init__(self, space: gym.spaces.Discrete) -> None:
        super().__init__()
        self.outputs, self.first, self.dtype = int(space.n), int(space.start), space.dtype

    def forward(self, outputs: Tensor) -> Categorical:
        return Categorical.from_logits(outputs)

    def noise(self, *shape: int, device: torch.device) -> Tensor:
        return gumbel(*shape, self.outputs, device=device)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        return (action + self.first).astype(self.dtype, copy=False)


class MultiCategorical(NamedTuple):
    """Independent choices, each with its own number of options; actions are int64 [..., k]."""

    parts: tuple[Categorical, ...]

    def sample(self, noise: Tensor) -> Tensor:
        pieces = noise.split([part.logp_all.shape[-1] for part in self.parts], -1)
        return torch.stack([part.sample(piece) for part, piece in zip(self.parts, pieces, strict=True)], -1)

    def mode(self) -> Tensor:
        return torch.stack([part.mode() for part in self.parts], -1)

    def logp(self, action: Tensor) -> Tensor:
        return torch.stack([part.logp(a) for part, a in zip(self.parts, action.unbind(-1), strict=True)]).sum(0)

    def entropy(self) -> Tensor:
        return torch.stack([part.entropy() for part in self.parts]).sum(0)

    def kl(self, other: MultiCategorical) -> Tensor:
        return torch.stack([a.kl(b) for a, b in zip(self.parts, other.parts, strict=True)]).sum(0)


class MultiCategoricalHead(nn.Module):
    """MultiDiscrete of any shape: independent choices."""

    def __init__(self, space: gym.spaces.MultiDiscrete) -> None:
        super().__init__()
        self.sizes = [int(n) for n in space.nvec.reshape(-1)]
        self.outputs, self.first, self.dtype = sum(self.sizes), space.start, space.dtype

    def forward(self, outputs: Tensor) -> MultiCategorical:
        return MultiCategorical(tuple(map(Categorical.from_logits, outputs.split(self.sizes, -1))))

    def noise(self, *shape: int, device: torch.device) -> Tensor:
        return gumbel(*shape, self.outputs, device=device)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        return (action.reshape(-1, *self.first.shape) + self.first).astype(self.dtype, copy=False)


class Bernoulli(NamedTuple):
    """Independent yes-or-no choices. `logits` [..., k]; actions are 0.0 or 1.0, [..., k]."""

    logits: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Yes where the logit exceeds standard logistic noise [..., k]."""
        return (self.logits > noise).to(self.logits.dtype)

    def mode(self) -> Tensor:
        return (self.logits > 0).to(self.logits.dtype)

    def logp(self, action: Tensor) -> Tensor:
        return (action * self.logits - softplus(self.logits)).sum(-1)

    def entropy(self) -> Tensor:
        return (softplus(self.logits) - self.logits * self.logits.sigmoid()).sum(-1)

    def kl(self, other: Bernoulli) -> Tensor:
        yes = self.logits.sigmoid()
        logp_yes = logsigmoid(self.logits) - logsigmoid(other.logits)
        logp_no = logsigmoid(-self.logits) - logsigmoid(-other.logits)
        return (yes * logp_yes + (1 - yes) * logp_no).sum(-1)


class BernoulliHead(nn.Module):
    """MultiBinary of any shape: independent yes-or-no choices."""

    def __init__(self, space: gym.spaces.MultiBinary) -> None:
        super().__init__()
        self.shape, self.dtype = space.shape, space.dtype
        self.outputs = math.prod(self.shape)

    def forward(self, outputs: Tensor) -> Bernoulli:
        return Bernoulli(outputs)

    def noise(self, *shape: int, device: torch.device) -> Tensor:
        return logistic(*shape, self.outputs, device=device)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        return action.reshape(-1, *self.shape).astype(self.dtype)


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

    def kl(self, other: Gaussian) -> Tensor:
        ratio = (2 * (self.log_std - other.log_std)).exp()
        distance = ((self.mean - other.mean) * (-other.log_std).exp()).square()
        return (0.5 * (ratio + distance - 1) - (self.log_std - other.log_std)).sum(-1)


class GaussianHead(nn.Module):
    """Box of any shape: a normal distribution with a state-independent standard deviation, which starts at 1.

    The rule for bounds: a coordinate bounded on both sides is scaled, so that the policy's −1 and 1 are its low and
    high; a coordinate with an infinite side keeps the environment's units. For the environment alone, every action is
    clipped to the box; the policy learns from what it drew. Integer boxes get the nearest integer.
    """

    def __init__(self, space: gym.spaces.Box) -> None:
        super().__init__()
        self.outputs, self.shape, self.dtype = math.prod(space.shape), space.shape, space.dtype
        self.low, self.high = space.low.astype(np.float64), space.high.astype(np.float64)
        bounded = np.isfinite(self.low) & np.isfinite(self.high)
        low, high = np.where(bounded, self.low, -1.0), np.where(bounded, self.high, 1.0)
        self.centre, self.reach = low / 2 + high / 2, high / 2 - low / 2
        self.log_std = nn.Parameter(torch.zeros(self.outputs))

    def forward(self, outputs: Tensor) -> Gaussian:
        return Gaussian(outputs, self.log_std.expand_as(outputs))

    def noise(self, *shape: int, device: torch.device) -> Tensor:
        return torch.randn(*shape, self.outputs, device=device)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        scaled = self.centre + self.reach * action.reshape(-1, *self.shape)
        inside = np.clip(scaled, self.low, self.high)
        if np.issubdtype(self.dtype, np.integer):
            inside = np.rint(inside)
        return inside.astype(self.dtype)


def gumbel(*shape: int, device: torch.device) -> Tensor:
    """Standard Gumbel noise −log(−log u), from torch's global generator; finite.

    u is float64: among 2²⁴ values the rare actions would be drawn too often or never. A third of the time of
    `exponential_`, which draws them one by one.
    """
    uniform = torch.rand(shape, dtype=torch.float64, device=device).clamp_(min=2.0**-54)  # zero may be drawn
    return uniform.log_().neg_().log_().neg_().float()


def logistic(*shape: int, device: torch.device) -> Tensor:
    """Standard logistic noise, from torch's global generator; finite."""
    return torch.rand(shape, device=device).clamp(1e-7, 1 - 1e-7).logit()


HEADS: dict[type[gym.Space], type[nn.Module]] = {
    gym.spaces.Discrete: CategoricalHead,
    gym.spaces.MultiDiscrete: MultiCategoricalHead,
    gym.spaces.MultiBinary: BernoulliHead,
    gym.spaces.Box: GaussianHead,
}


def head_for(space: gym.Space) -> nn.Module:
    """The head for an action space; UnsupportedSpace names what is not served."""
    for kind, head in HEADS.items():
        if isinstance(space, kind) and 0 not in (space.shape or ()):
            return head(space)
    served = ", ".join(kind.__name__ for kind in HEADS)
    raise UnsupportedSpace(f"action space {space} is not supported yet (supported: {served}, of at least one number)")
