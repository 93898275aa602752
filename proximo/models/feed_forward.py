"""A whole policy of a network of one's own and a head: what a policy that remembers nothing is asked for."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from proximo.batch import Batch
from proximo.models.actor_critic import distribution_of, to_arrays
from proximo.models.own import flattened
from proximo.policy import Evaluation


class FeedForward(nn.Module):
    """`network(observation)` of rows [N, ...] gives (outputs [N, head.outputs], value [N]); see `head_for`.

    Of a Dict with an `action_mask` the network sees the whole, and the head applies the mask. A network that keeps
    running statistics has `observe(observation, mask)`, which takes in the rows [N, ...] where mask [N] is True.
    """

    sequence = 1

    def __init__(self, observation_space: gym.Space, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.space = observation_space
        self.network: Any = network
        self.head: Any = head

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def initial(self, lanes: int) -> Any:
        return ()

    def noise(self, *shape: int) -> Any:
        return self.head.noise(*shape, device=self.device)

    @torch.no_grad()
    def act(self, observation: Any, noise: Any, memory: Any = (), start: Tensor | None = None) -> tuple[Any, Any]:
        distribution, _ = self._judged(observation)
        return distribution.mode() if noise is None else distribution.sample(noise), ()

    def to_env(self, action: Any) -> Any:
        return self.head.to_env(to_arrays(action))

    def value(self, observation: Any, memory: Any = (), start: Tensor | None = None) -> Tensor:
        return self._judged(observation)[1]

    def evaluate(self, batch: Batch) -> Evaluation:
        distribution, value = self._judged(batch.observation)
        return Evaluation(distribution.logp(batch.action), value, distribution)

    def observe(self, batch: Batch) -> None:
        if hasattr(self.network, "observe"):
            self.network.observe(flattened(self.space, batch.observation)[0], batch.mask.flatten())

    def _judged(self, observation: Any) -> tuple[Any, Tensor]:
        rows, lead = flattened(self.space, observation)
        outputs, value = self.network(rows)
        return distribution_of(self.head, outputs.unflatten(0, lead), observation), value.unflatten(0, lead)
