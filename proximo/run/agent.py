"""The agent: a trained policy with its normaliser and its memory, ready to act."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from proximo.batch import leaves_of, tree_map
from proximo.errors import ConfigError, EnvFailure, NonFiniteError
from proximo.models.actor_critic import ActorCritic
from proximo.observations import pointer
from proximo.sources.buffers import Leaf, Observations, taken


class Agent:
    """Acts on observations as the environment gives them and returns actions as the environment takes them.

    One that remembers goes on where it was with every `act`; `reset()` tells it that an episode begins.
    """

    def __init__(self, policy: ActorCritic, observation_space: gym.Space, action_space: gym.Space) -> None:
        self.policy = policy
        self.observation_space, self.action_space = observation_space, action_space
        self.seen = Observations(observation_space, 1, 0)
        self.memory: Any = None

    def __repr__(self) -> str:
        return f"<Agent: {self.observation_space} -> {self.action_space}>"

    def reset(self) -> None:
        """Forget: the next observation is an episode's first."""
        self.memory = None

    def act(self, observation: Any, deterministic: bool = True, start: Any = None) -> Any:
        """The action for one observation, or actions for a batch of observations [N, ...], leaf by leaf.

        `deterministic` takes the most likely action; otherwise one is drawn (torch's global generator). `start`, a
        bool or one for each observation, says where an episode begins, for an agent that remembers; its memory is of
        as many lanes as it was shown last. Raises ConfigError for an observation of another shape, NonFiniteError for
        NaN or infinity.
        """
        rows, many = self.rows(observation)
        count = len(leaves_of(rows)[0])
        if self.memory is None or (leaves_of(self.memory) and len(leaves_of(self.memory)[0]) != count):
            self.memory = self.policy.initial(count)
        begun = torch.as_tensor(np.broadcast_to(False if start is None else start, (count,)).copy())
        noise = None if deterministic else self.policy.noise(count)
        action, self.memory = self.policy.act(rows, noise, self.memory, begun.to(self.policy.device))
        actions = self.policy.to_env(action)
        return actions if many else tree_map(lambda x: x[0], actions)

    def keep(self, lanes: list[int]) -> None:
        """Of what is remembered, keep these lanes alone."""
        self.memory = tree_map(lambda x: x[lanes], self.memory)

    def rows(self, observation: Any) -> tuple[Any, bool]:
        """Observations as the policy takes them, [N, ...], and whether there were many."""
        found, many = list[Tensor](), False
        for leaf in self.seen.leaves:
            value, wanted = self._part(observation, leaf), leaf.shape
            if isinstance(leaf.space, gym.spaces.Text):
                many = not isinstance(value, str)
                rows = leaf.stored(value if many else [value], 0)
            else:
                with np.errstate(over="ignore"):  # becomes infinity, and is refused as such
                    given = np.asarray(value, leaf.dtype if leaf.dtype.kind == "f" else None)
                many = given.ndim == len(wanted) + 1
                if given.shape[many:] != wanted:
                    raise ConfigError(
                        f"the observation{leaf.where} has shape {given.shape}; this agent was trained on {wanted}"
                    )
                rows = leaf.stored(given if many else given[None], len(given) if many else 1)
            if leaf.dtype.kind == "f" and not np.isfinite(rows).all():
                raise NonFiniteError(f"the observation{leaf.where} holds NaN or infinity")
            found.append(torch.as_tensor(rows, device=self.policy.device))
        return self.seen.tree(found), many

    def _part(self, observation: Any, leaf: Leaf) -> Any:
        try:
            return taken(observation, leaf)
        except EnvFailure:
            raise ConfigError(f"the observation has no {pointer(leaf.path)}, which this agent was trained on") from None


def together(observations: list[Any]) -> Any:
    """Single observations as a batch of them: arrays [N, ...] leaf by leaf, and lists of texts."""
    first = observations[0]
    if isinstance(first, dict):
        return {key: together([each[key] for each in observations]) for key in first}
    if isinstance(first, tuple):
        return tuple(together(list(part)) for part in zip(*observations, strict=True))
    return observations if isinstance(first, str) else np.stack(observations)
