"""Beta distributions over bounded boxes, and their head."""

from __future__ import annotations

from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from proximo.models.distributions.continuous import Bounds

PROPOSALS = 6  # for a gamma variate; each is accepted with a probability of 0.95 or more


class Beta(NamedTuple):
    """Independent beta coordinates (Chou et al. 2017). `alpha`, `beta` [..., k] are at least 1: one peak each.

    Actions are logits y [..., k]; densities are those of x = sigmoid y, over (0, 1)ᵏ. They are computed in float64:
    where α and β are large, of differences of log-gammas a float32 has few digits left.
    """

    alpha: Tensor
    beta: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """The logit of a / (a + b), a and b gamma variates; noise [..., k, 2, PROPOSALS, 2] is for `log_gamma`."""
        a, b = log_gamma(torch.stack([self.alpha, self.beta], -1), noise).unbind(-1)
        return a - b

    def mode(self) -> Tensor:
        """(α − 1) / (α + β − 2), as a logit; ½ where both are 1."""
        least = torch.finfo(self.alpha.dtype).eps
        a, b = (x.sub(1).clamp(min=least).log() for x in self)
        return a - b

    def logp(self, action: Tensor) -> Tensor:
        a, b, y = self.alpha.double(), self.beta.double(), action.double()
        each = (a - 1) * logsigmoid(y) + (b - 1) * logsigmoid(-y) - log_norm(a, b)
        return each.sum(-1).to(self.alpha.dtype)

    def entropy(self) -> Tensor:
        a, b = self.alpha.double(), self.beta.double()
        each = (a - 1) * a.digamma() + (b - 1) * b.digamma() - (a + b - 2) * (a + b).digamma()
        return (log_norm(a, b) - each).sum(-1).to(self.alpha.dtype)

    def kl(self, other: Beta) -> Tensor:
        a, b, other_a, other_b = (x.double() for x in (*self, *other))
        more_a, more_b = a - other_a, b - other_b
        each = more_a * a.digamma() + more_b * b.digamma() - (more_a + more_b) * (a + b).digamma()
        return (log_norm(other_a, other_b) - log_norm(a, b) + each).sum(-1).to(self.alpha.dtype)


def log_norm(alpha: Tensor, beta: Tensor) -> Tensor:
    """log B(α, β) of each coordinate, [..., k]."""
    return alpha.lgamma() + beta.lgamma() - (alpha + beta).lgamma()


def log_gamma(alpha: Tensor, noise: Tensor) -> Tensor:
    """log of a gamma variate with shape `alpha` [...] ≥ 1 (Marsaglia and Tsang 2000).

    `noise` [..., PROPOSALS, 2]: standard normal z and the logarithm of uniform u. The first accepted proposal is
    taken. With a probability below 2·10⁻⁸ none is; then the first is taken all the same.
    """
    z, log_u = noise.unbind(-1)
    d = alpha.unsqueeze(-1) - 1 / 3
    root = 1 + z / (3 * d.sqrt())
    log_v = 3 * root.clamp(min=torch.finfo(root.dtype).eps).log()
    accepted = (root > 0) & (log_u < 0.5 * z.square() + d * (1 - root**3 + log_v))
    first = accepted.to(z.dtype).argmax(-1, keepdim=True)
    return (d.log() + log_v).gather(-1, first).squeeze(-1)


class BetaHead(nn.Module):
    """A Box that is bounded everywhere: beta, 0 and 1 being the bounds; α and β are 1 + softplus(outputs)."""

    def __init__(self, space: gym.spaces.Box) -> None:
        super().__init__()
        self.bounds = Bounds(space)
        self.bounds.required("beta", space)
        self.outputs = 2 * self.bounds.numbers

    def forward(self, outputs: Tensor) -> Beta:
        alpha, beta = (1 + softplus(outputs)).chunk(2, -1)
        return Beta(alpha, beta)

    def noise(self, *shape: int, device: torch.device) -> Tensor:
        shape = *shape, self.bounds.numbers, 2, PROPOSALS
        uniform = torch.rand(shape, device=device).clamp_(min=2.0**-25)  # zero may be drawn
        return torch.stack([torch.randn(shape, device=device), uniform.log_()], -1)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        return self.bounds.to_env(np.tanh(action / 2))  # 2 sigmoid(y) − 1
