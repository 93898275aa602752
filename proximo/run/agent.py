"""The agent: a trained policy with its normaliser and its memory, ready to act."""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch

from proximo.batch import leaves_of, tree_map
from proximo.errors import ConfigError, EnvFailure, NonFiniteError
from proximo.observations import choices, pointer, space_map
from proximo.policy import Learner, Policy
from proximo.sources.buffers import Leaf, mask_among, stored_leaves, taken, without_option
from proximo.sources.masks import in_a_row, in_parts


class Acting(Protocol):
    """Something that holds a policy to act with."""

    @property
    def policy(self) -> Learner: ...


class Agent:
    """Acts on observations as the environment gives them and returns actions as the environment takes them.

    One that remembers goes on where it was with every `act`; `reset()` tells it that an episode begins.
    """

    def __init__(self, policy: Policy, observation_space: gym.Space, action_space: gym.Space) -> None:
        self.policy = policy
        self.observation_space, self.action_space = observation_space, action_space
        self.leaves, self.choices = stored_leaves(observation_space), choices(action_space)
        self.mask = mask_among(self.leaves) if self.choices else None
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
        NaN or infinity, EnvFailure for a mask that allows no action. A mask [options] has those of all choices in a
        row (of a Dict of actions in the order of its keys; other parts have none); that of one observation may come
        part by part, like the action.
        """
        rows, many = self.rows(observation)
        count = len(leaves_of(rows)[0])
        if self.memory is None or (leaves_of(self.memory) and len(leaves_of(self.memory)[0]) != count):
            self.memory = self.policy.initial(count)
        if np.shape(start) not in ((), (count,)):
            raise ConfigError(f"start has shape {np.shape(start)}; there are {count} observations")
        begun = torch.as_tensor(np.broadcast_to(bool(start) if np.ndim(start) == 0 else start, (count,)).copy())
        noise = None if deterministic else self.policy.noise(count)
        action, self.memory = self.policy.act(rows, noise, self.memory, begun.to(self.policy.device))
        actions = self.policy.to_env(action)
        return actions if many else tree_map(lambda x: x[0], actions)

    def keep(self, lanes: list[int]) -> None:
        """Of what is remembered, keep these lanes alone."""
        self.memory = tree_map(lambda x: x[lanes], self.memory)

    def rows(self, observation: Any) -> tuple[Any, bool]:
        """Observations as the policy takes them, [N, ...], and whether there were many."""
        found = [self._rows(self._part(observation, leaf), leaf) for leaf in self.leaves]
        kinds = {len(rows) if many else None for rows, many in found}
        if len(kinds) > 1:
            raise ConfigError("the parts of the observation are not all one, or not all as many")
        for leaf, (mask, _) in zip(self.leaves, found, strict=True):
            if leaf is self.mask and without_option(mask, self.choices).any():
                raise EnvFailure("no action is allowed: the mask leaves a choice without an option")
        tensors = (torch.as_tensor(rows, device=self.policy.device) for rows, _ in found)
        return space_map(lambda path, leaf: next(tensors), self.observation_space), kinds != {None}

    def together(self, observations: list[Any]) -> Any:
        """Single observations as a batch of them: arrays [N, ...] leaf by leaf, and lists of texts."""
        parts = ([self._part(each, leaf) for each in observations] for leaf in self.leaves)
        many = (part if isinstance(part[0], str) else np.stack(part) for part in parts)
        return space_map(lambda path, leaf: next(many), self.observation_space)

    def _rows(self, value: Any, leaf: Leaf) -> tuple[np.ndarray, bool]:
        """One leaf as it is kept, [N, ...], and whether there were many."""
        wanted, text = leaf.shape, isinstance(leaf.space, gym.spaces.Text)
        try:
            with np.errstate(over="ignore"):  # becomes infinity, and is refused as such
                given = np.asarray(value, leaf.dtype if leaf.dtype.kind == "f" else None)
        except (TypeError, ValueError):
            raise ConfigError(f"the observation{leaf.where} is {value!r}, none of {leaf.space}") from None
        many = not isinstance(value, str) if text else given.ndim == len(wanted) + 1
        if not text and given.shape[many:] != wanted:
            shape = given.shape
            raise ConfigError(f"the observation{leaf.where} has shape {shape}; this agent was trained on {wanted}")
        try:
            rows = leaf.stored((value if many else [value]) if text else (given if many else given[None]), -1)
        except (EnvFailure, TypeError) as error:
            raise ConfigError(f"the observation{leaf.where} is none of {leaf.space}: {error}") from None
        if leaf.dtype.kind == "f" and not np.isfinite(rows).all():
            raise NonFiniteError(f"the observation{leaf.where} holds NaN or infinity")
        if not len(rows):
            raise ConfigError(f"the observation{leaf.where} is an empty batch")
        return rows, many

    def _part(self, observation: Any, leaf: Leaf) -> Any:
        try:
            part = taken(observation, leaf)
            by_parts = leaf is self.mask and in_parts(part, leaf.shape)
            return in_a_row(part, self.action_space) if by_parts else part
        except ValueError as error:
            raise ConfigError(f"the observation{leaf.where}{error}") from None
        except EnvFailure:
            shapes = space_map(lambda path, leaf: leaf.shape, self.observation_space)
            raise ConfigError(
                f"the observation has no {pointer(leaf.path)}; this agent was trained on the shapes {shapes}"
            ) from None
