"""What sources and algorithms ask of a policy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import gymnasium as gym
import torch
from torch import Tensor, nn

from proximo.batch import Batch, leaves_of, tree_map
from proximo.observations import zeros


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
    values: Any = None  # [..., K] what each of several critics says, of whom `value` is the mean


class Learner(Protocol):
    """Evaluates while learning: an nn.Module; all that updaters, the guard and the ledger ask of a policy."""

    def evaluate(self, batch: Batch) -> Evaluation:
        """Log-probability, value and distribution of the batch's observations and actions.

        Of whole lanes in the order of time, from `batch.memory`, where the policy remembers. Where drift is measured a
        batch has no other columns than those, mask, start and old (see `proximo.drift.looked_at`).
        """
        ...

    def observe(self, batch: Batch) -> None:
        """Take a batch that was learned from into the running statistics (of its live rows)."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def state_dict(self, *, keep_vars: bool = False) -> dict[str, Any]: ...

    @property
    def device(self) -> torch.device: ...


class Policy(Learner, Protocol):
    """Acts while collecting, evaluates while learning; see `models.actor_critic`, `models.feed_forward`.

    Observations, noise, actions and memory are tensors or nested dicts and tuples of tensors. A policy that remembers
    nothing has the memory (), and takes no notice of `start`.
    """

    sequence: int  # steps that a policy which remembers learns from at once

    def initial(self, lanes: int) -> Any:
        """What is remembered before the first step of an episode: tensors [lanes, ...]."""
        ...

    def noise(self, *shape: int) -> Any:
        """The randomness of `shape` actions, drawn at once from torch's global generator: [*shape, ...]."""
        ...

    def act(self, observation: Any, noise: Any, memory: Any = (), start: Tensor | None = None) -> tuple[Any, Any]:
        """Actions for observations [N, ...], the most likely ones where there is no noise; and the memory after them.

        Where `start` [N] bool is set an episode begins, and what is remembered of the one before does not count.
        """
        ...

    def to_env(self, action: Any) -> Any:
        """Actions as the environment takes them: its units, bounds, dtype; NumPy."""
        ...

    def value(self, observation: Any, memory: Any = (), start: Tensor | None = None) -> Tensor:
        """Values [N] of observations [N, ...]."""
        ...


@runtime_checkable
class Looking(Protocol):
    """A policy that acts in two steps, the first of which need not be taken again to judge what it did."""

    looks: bool  # whether that is worth while: an image network's features, not a few numbers

    def look(self, observation: Any, memory: Any, start: Tensor | None) -> tuple[tuple[Tensor, ...], Any]:
        """What it makes of observations [N, ...], tensors [N, F], and the memory after them.

        `evaluate` takes them, [T, N, F], as the column `features`, and looks no more.
        """
        ...

    def choose(self, features: tuple[Tensor, ...], observation: Any, noise: Any) -> Any:
        """Actions, as `act` does."""
        ...


@runtime_checkable
class Layered(Protocol):
    """A policy whose layers can be looked at; one that is none learns as well, and no figures tell of its units."""

    def layers(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """What the units of each hidden layer of the actor, and of the critic, make of the batch: [..., units] each.

        Without gradients. Of whole lanes in the order of time, from `batch.memory`, where the policy remembers.
        """
        ...


def blank(policy: Policy, space: gym.Space, steps: int, lanes: int) -> Batch:
    """A batch of dead rows [steps, lanes], with the columns that a source collects for this policy, all zero."""
    observation = tree_map(lambda x: torch.from_numpy(x).to(policy.device), zeros(space, steps, lanes))
    number = torch.zeros(steps, lanes, device=policy.device)
    numbers = dict.fromkeys(("reward", "logp", "value", "next_value"), number)
    flags = dict.fromkeys(("mask", "start", "terminated", "truncated"), number.bool())
    first = policy.initial(lanes)
    action = policy.act(tree_map(lambda x: x[0], observation), None, first)[0]
    action = tree_map(lambda x: torch.zeros_like(x).expand(steps, *x.shape).clone(), action)
    batch = Batch(observation=observation, action=action, **numbers, **flags)
    if not leaves_of(first):
        return batch
    return batch.replace(memory=tree_map(lambda x: x.expand(steps // policy.sequence, *x.shape).clone(), first))
