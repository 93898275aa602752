"""Distributions over choices, and their heads. Some choices may be forbidden, row by row.

A mask `allowed` is bool or any number, non-zero where the choice is allowed, and broadcasts to the logits. What is
forbidden is never drawn, has no gradient, and adds nothing to entropy or KL; its log-probability is `FORBIDDEN`. A row
that allows nothing, as a dead row may, has finite numbers that mean nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

# Nats. `gumbel` lies between −4 and 37 and one of n allowed choices has a log-probability of −log n or more, so
# anything below −41 − log n is never drawn. It is finite, so that 0 · FORBIDDEN is 0.
FORBIDDEN = -1e6


class Categorical(NamedTuple):
    """One of n choices. `logp_all` [..., n] are normalised log-probabilities; actions are int64 [...]."""

    logp_all: Tensor

    @classmethod
    def from_logits(cls, logits: Tensor, allowed: Tensor | None = None) -> Categorical:
        """From logits [..., n], with all choices or the `allowed` ones, [..., n]."""
        if allowed is None:
            return cls(logits.log_softmax(-1))
        forbidden = allowed == 0
        lowest = torch.finfo(logits.dtype).min  # below every logit, and finite where a row allows nothing
        logp_all = logits.masked_fill(forbidden, lowest).log_softmax(-1)
        return cls(logp_all.masked_fill(forbidden, FORBIDDEN))

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
        self.outputs = self.options = int(space.n)
        self.first, self.dtype = int(space.start), space.dtype

    def forward(self, outputs: Tensor, allowed: Tensor | None = None) -> Categorical:
        """From logits [..., n]; `allowed` [..., n] is a mask of choices."""
        return Categorical.from_logits(outputs, allowed)

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
        self.outputs = self.options = sum(self.sizes)
        self.first, self.dtype = space.start, space.dtype

    def forward(self, outputs: Tensor, allowed: Tensor | None = None) -> MultiCategorical:
        """From logits [..., sum of options], part after part; `allowed`, a mask of them, is in the same order."""
        logits = outputs.split(self.sizes, -1)
        masks = [None] * len(logits) if allowed is None else allowed.split(self.sizes, -1)
        return MultiCategorical(tuple(map(Categorical.from_logits, logits, masks)))

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


def gumbel(*shape: int, device: torch.device) -> Tensor:
    """Standard Gumbel noise −log(−log u), from torch's global generator; finite.

    u is float64: among 2²⁴ values the rare actions would be drawn too often or never. A little over half the
    time of `exponential_`, which draws them one by one.
    """
    uniform = torch.rand(shape, dtype=torch.float64, device=device).clamp_(min=2.0**-54)  # zero may be drawn
    return uniform.log_().neg_().log_().neg_().float()


def logistic(*shape: int, device: torch.device) -> Tensor:
    """Standard logistic noise, from torch's global generator; finite."""
    return torch.rand(shape, device=device).clamp(1e-7, 1 - 1e-7).logit()
