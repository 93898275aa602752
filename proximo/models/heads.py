"""Heads: from a network's outputs to a distribution, and from its actions to what the environment takes."""

from __future__ import annotations

from typing import Protocol

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from proximo.errors import UnsupportedSpace
from proximo.models.distributions import Bernoulli, Categorical, Gaussian, MultiCategorical, gumbel, logistic
from proximo.policy import Distribution


class Head(Protocol):
    """What an action space asks of a policy. Heads are modules, for those with parameters of their own."""

    outputs: int  # how many numbers the network must give

    def __call__(self, outputs: Tensor) -> Distribution: ...

    def noise(self, *shape: int, device: torch.device) -> Tensor: ...

    def to_env(self, action: np.ndarray) -> np.ndarray:
        """Actions [N, ...] in the environment's units."""
        ...


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


class BernoulliHead(nn.Module):
    """MultiBinary of any shape: independent yes-or-no choices."""

    def __init__(self, space: gym.spaces.MultiBinary) -> None:
        super().__init__()
        self.shape, self.dtype = space.shape, space.dtype
        self.outputs = int(np.prod(self.shape))

    def forward(self, outputs: Tensor) -> Bernoulli:
        return Bernoulli(outputs)

    def noise(self, *shape: int, device: torch.device) -> Tensor:
        return logistic(*shape, self.outputs, device=device)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        return action.reshape(-1, *self.shape).astype(self.dtype)


class GaussianHead(nn.Module):
    """Box of any shape: a normal distribution with a state-independent standard deviation that starts at 1.

    The rule for bounds: a coordinate bounded on both sides is scaled, so that the policy's −1 and 1 are its low and
    high; a coordinate with an infinite side keeps the environment's units. For the environment alone, every action is
    clipped to the box; the policy learns from what it drew. Integer boxes get the nearest integer.
    """

    def __init__(self, space: gym.spaces.Box) -> None:
        super().__init__()
        self.outputs, self.shape, self.dtype = int(np.prod(space.shape)), space.shape, space.dtype
        self.low, self.high = space.low.astype(np.float64), space.high.astype(np.float64)
        bounded = np.isfinite(self.low) & np.isfinite(self.high)
        low, high = np.where(bounded, self.low, -1.0), np.where(bounded, self.high, 1.0)
        self.centre, self.reach = low / 2 + high / 2, high / 2 - low / 2
        self.log_std = nn.Parameter(torch.zeros(self.outputs))

    def forward(self, outputs: Tensor) -> Gaussian:
        return Gaussian(outputs, self.log_std)

    def noise(self, *shape: int, device: torch.device) -> Tensor:
        return torch.randn(*shape, self.outputs, device=device)

    def to_env(self, action: np.ndarray) -> np.ndarray:
        scaled = self.centre + self.reach * action.reshape(-1, *self.shape)
        inside = np.clip(scaled, self.low, self.high)
        if np.issubdtype(self.dtype, np.integer):
            inside = np.rint(inside)
        return inside.astype(self.dtype)


HEADS: dict[type[gym.Space], type[nn.Module]] = {
    gym.spaces.Discrete: CategoricalHead,
    gym.spaces.MultiDiscrete: MultiCategoricalHead,
    gym.spaces.MultiBinary: BernoulliHead,
    gym.spaces.Box: GaussianHead,
}


def head_for(space: gym.Space) -> nn.Module:
    """The head for an action space; UnsupportedSpace names what is not served."""
    for kind, head in HEADS.items():
        if isinstance(space, kind):
            return head(space)
    served = ", ".join(kind.__name__ for kind in HEADS)
    raise UnsupportedSpace(f"action space {space} is not supported yet (supported: {served})")


def feature_count(space: gym.Space) -> int:
    """How many numbers an observation has; UnsupportedSpace for anything but a vector."""
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and space.shape[0] > 0:
        return space.shape[0]
    advice = "flatten it with gymnasium.wrappers.FlattenObservation"
    raise UnsupportedSpace(f"observation space {space} is not supported yet (supported: Box vectors); {advice}")
