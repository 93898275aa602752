"""Distributions over actions. All randomness comes from outside, as noise drawn beforehand."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus


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


def gumbel(*shape: int, device: torch.device) -> Tensor:
    """Standard Gumbel noise, from torch's global generator; finite (an exponential draw may be exactly zero)."""
    tiny = torch.finfo(torch.float32).tiny
    return -torch.empty(shape, device=device).exponential_().clamp(min=tiny).log()


def logistic(*shape: int, device: torch.device) -> Tensor:
    """Standard logistic noise, from torch's global generator; finite."""
    return torch.rand(shape, device=device).clamp(1e-7, 1 - 1e-7).logit()
