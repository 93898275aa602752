"""The agent: a trained policy with its normaliser, ready to act."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch

from proximo.errors import ConfigError, NonFiniteError
from proximo.models.actor_critic import ActorCritic


class Agent:
    """Acts on observations as the environment gives them and returns actions as the environment takes them."""

    def __init__(self, policy: ActorCritic, observation_space: gym.Space, action_space: gym.Space) -> None:
        self.policy = policy
        self.observation_space, self.action_space = observation_space, action_space

    def __repr__(self) -> str:
        return f"<Agent: {self.observation_space} -> {self.action_space}>"

    def act(self, observation: Any, deterministic: bool = True) -> Any:
        """The action for one observation, or an array of actions for an array of observations [N, ...].

        `deterministic` takes the most likely action; otherwise one is drawn (torch's global generator).
        Raises ConfigError for an observation of another shape, NonFiniteError for NaN or infinity.
        """
        with np.errstate(over="ignore"):  # becomes infinity, and is refused as such
            given = np.asarray(observation, np.float32)
        wanted = self.observation_space.shape or ()
        if given.shape[-len(wanted) :] != wanted or given.ndim > len(wanted) + 1:
            raise ConfigError(f"the observation has shape {given.shape}; this agent was trained on {wanted}")
        if not np.isfinite(given).all():
            raise NonFiniteError("the observation holds NaN or infinity")
        many = given.ndim > len(wanted)
        rows = torch.as_tensor(given if many else given[None], device=self.policy.device)
        noise = None if deterministic else self.policy.noise(len(rows))
        actions = self.policy.to_env(self.policy.act(rows, noise)[0])
        return actions if many else actions[0]
