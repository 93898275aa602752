"""The actor-critic for vectors: a normaliser, two towers, and a head for the action space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import gymnasium as gym
import torch
from torch import Tensor, nn

from proximo.batch import Batch
from proximo.errors import ConfigError, UnsupportedSpace
from proximo.models.distributions import GaussianHead, head_for
from proximo.models.normalize import Normalizer
from proximo.policy import Evaluation

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU}


@dataclass(frozen=True)
class Network:
    """The shape of the policy's network."""

    hidden: tuple[int, ...] = (64, 64)
    """Units in each hidden layer, of the actor and of the critic alike."""

    activation: Literal["tanh", "relu", "elu", "silu"] = "tanh"
    """What stands between the layers."""

    normalize_observation: bool = False
    """Centre and scale observations by running statistics, clipped to ±10; they travel with the policy."""

    log_std_init: float = 0.0
    """Natural logarithm of the standard deviation that continuous actions begin with."""

    def __post_init__(self) -> None:
        if not all(0 < width <= 65_536 for width in self.hidden) or len(self.hidden) > 64:
            raise ConfigError(f"hidden is {self.hidden}: give at most 64 layers of 1 to 65,536 units")
        if not -10 <= self.log_std_init <= 10:
            raise ConfigError(f"log_std_init is {self.log_std_init}: it must be between -10 and 10")


def tower(sizes: Sequence[int], activation: type[nn.Module], gain: float) -> nn.Sequential:
    """A multilayer perceptron; orthogonal weights (gain √2, the last layer's `gain`), zero biases."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        last = i == len(sizes) - 2
        linear = nn.Linear(inputs, outputs)
        if not linear.weight.is_meta:
            nn.init.orthogonal_(linear.weight, gain if last else 2**0.5)
            nn.init.zeros_(linear.bias)
        layers += [linear] if last else [linear, activation()]
    return nn.Sequential(*layers)


class ActorCritic(nn.Module):
    """Separate towers for policy and value over one normaliser (Andrychowicz et al. 2021, arXiv:2006.05990)."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space, network: Network) -> None:
        super().__init__()
        self.sequence = 1
        self.features, activation = feature_count(observation_space), ACTIVATIONS[network.activation]
        self.normalizer = Normalizer(self.features) if network.normalize_observation else nn.Identity()
        self.head: Any = head_for(action_space)
        if isinstance(self.head, GaussianHead):
            nn.init.constant_(self.head.log_std, network.log_std_init)
        self.actor = tower((self.features, *network.hidden, self.head.outputs), activation, gain=0.01)
        self.critic = tower((self.features, *network.hidden, 1), activation, gain=1.0)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def noise(self, *shape: int) -> Tensor:
        return self.head.noise(*shape, device=self.device)

    def initial(self, lanes: int) -> tuple[()]:
        return ()

    @torch.no_grad()
    def act(
        self, observation: Tensor, noise: Tensor | None, memory: Any = (), start: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        distribution = self.head(self.actor(self.normalizer(observation)))
        return distribution.mode() if noise is None else distribution.sample(noise), ()

    def to_env(self, action: Tensor) -> Any:
        return self.head.to_env(action.cpu().numpy())

    def value(self, observation: Tensor, memory: Any = (), start: Tensor | None = None) -> Tensor:
        return self.critic(self.normalizer(observation)).squeeze(-1)

    def evaluate(self, batch: Batch) -> Evaluation:
        features = self.normalizer(batch.observation)
        distribution = self.head(self.actor(features))
        return Evaluation(distribution.logp(batch.action), self.critic(features).squeeze(-1), distribution)

    def blank(self, *shape: int) -> Batch:
        """A batch of dead rows [*shape], with the columns that a source collects for this policy, all zero."""
        observation = torch.zeros(*shape, self.features, device=self.device)
        number = torch.zeros(shape, device=self.device)
        numbers = dict.fromkeys(("reward", "logp", "value", "next_value"), number)
        flags = dict.fromkeys(("mask", "start", "terminated", "truncated"), number.bool())
        action = torch.zeros_like(self.act(observation, None)[0])
        return Batch(observation=observation, action=action, **numbers, **flags)

    def observe(self, batch: Batch) -> None:
        if isinstance(self.normalizer, Normalizer):
            self.normalizer.observe(batch.observation, batch.mask)


def feature_count(space: gym.Space) -> int:
    """How many numbers an observation has; UnsupportedSpace for anything but a vector."""
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and space.shape[0] > 0:
        return space.shape[0]
    advice = "flatten it with gymnasium.wrappers.FlattenObservation"
    raise UnsupportedSpace(f"observation space {space} is not supported yet (supported: Box vectors); {advice}")
