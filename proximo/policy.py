"""What sources and algorithms ask of a policy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from proximo.batch import Batch


class Distribution(Protocol):
    """A distribution over actions, one per row of its parameters."""

    def sample(self, noise: Tensor) -> Tensor:
        """The action that this noise selects: all randomness comes from outside."""
        ...

    def mode(self) -> Tensor:
        """The most likely action."""
        ...

    def logp(self, action: Tensor) -> Tensor:
        """Log-probability (density) of whole actions, nats."""
        ...

    def entropy(self) -> Tensor:
        """Entropy, nats."""
        ...

    def kl(self, other: Self) -> Tensor:
        """Exact KL(self ‖ other), nats."""
        ...


class Evaluation(NamedTuple):
    """A policy's opinion of a batch, with gradients: the arguments of every Term."""

    logp: Tensor  # [...] log-probability of batch.action
    value: Tensor  # [...] value of batch.observation
    distribution: Distribution


class Policy(Protocol):
    """Acts while collecting, evaluates while learning. Torch modules fit; see `models.actor_critic`."""

    def noise(self, *shape: int) -> Tensor:
        """The randomness of `shape` actions, drawn at once from torch's global generator: [*shape, ...]."""
        ...

    def act(self, observation: Tensor, noise: Tensor | None) -> Tensor:
        """Actions for observations [N, ...]; the most likely ones where there is no noise."""
        ...

    def to_env(self, action: Tensor) -> Any:
        """Actions as the environment takes them: its units, bounds, dtype; NumPy."""
        ...

    def value(self, observation: Tensor) -> Tensor:
        """Values of observations [..., features] -> [...]."""
        ...

    def evaluate(self, batch: Batch) -> Evaluation:
        """Log-probability, value and distribution of the batch's observations and actions."""
        ...

    def observe(self, batch: Batch) -> None:
        """Take a batch that was learned from into the running statistics (of its live rows)."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...

    @property
    def device(self) -> torch.device: ...
