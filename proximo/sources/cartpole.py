"""CartPole-v1 in tensors: Gymnasium's equations of motion, in float32, for any number of lanes on any device."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from proximo.sources.tensors import Transition

GRAVITY, CART, POLE, HALF_LENGTH, FORCE, SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
EDGE, TILT, LIMIT = 2.4, 12 * 2 * math.pi / 360, 500
START = 0.05  # episodes begin with each number drawn from ±START


class CartPole(nn.Module):
    """A TensorEnv. Observations are position, velocity, angle and angular velocity; actions push left (0) or right."""

    state: Tensor
    taken: Tensor

    def __init__(self, lanes: int, device: str = "cpu", limit: int = LIMIT) -> None:
        super().__init__()
        self.num_envs, self.limit = lanes, limit
        high = np.array([2 * EDGE, np.inf, 2 * TILT, np.inf], np.float32)
        self.single_observation_space: gym.Space = gym.spaces.Box(-high, high)
        self.single_action_space: gym.Space = gym.spaces.Discrete(2)
        self.register_buffer("state", torch.zeros(lanes, 4, device=device))
        self.register_buffer("taken", torch.zeros(lanes, dtype=torch.int64, device=device))

    @property
    def device(self) -> torch.device:
        return self.state.device

    def reset(self, seed: int) -> Tensor:
        generator = torch.Generator(self.state.device).manual_seed(seed)
        self.state.uniform_(-START, START, generator=generator)
        self.taken.zero_()
        return self.state.clone()

    def noise(self, steps: int) -> Tensor:
        """Where the episodes begin that begin in these steps: [steps, N, 4]."""
        return torch.empty(steps, *self.state.shape, device=self.state.device).uniform_(-START, START)

    def step(self, action: Tensor, noise: Tensor) -> Transition:
        moved, taken = motion(self.state, action), self.taken + 1
        position, angle = moved[:, 0], moved[:, 2]
        terminated = (position.abs() > EDGE) | (angle.abs() > TILT)
        truncated = taken >= self.limit
        ended = terminated | truncated
        following = torch.where(ended.unsqueeze(-1), noise, moved)
        self.state.copy_(following)
        self.taken.copy_(torch.where(ended, 0, taken))
        return Transition(following, torch.ones_like(position), terminated, truncated, moved)


def motion(state: Tensor, action: Tensor) -> Tensor:
    """One Euler step of the cart and its pole (Barto, Sutton & Anderson 1983): [N, 4], [N] -> [N, 4]."""
    _, velocity, angle, spin = state.unbind(-1)
    force = FORCE * (2 * action.to(state.dtype) - 1)
    sine, cosine = angle.sin(), angle.cos()
    push = (force + POLE * HALF_LENGTH * spin.square() * sine) / (CART + POLE)
    turn = GRAVITY * sine - cosine * push
    twist = turn / (HALF_LENGTH * (4 / 3 - POLE * cosine.square() / (CART + POLE)))
    thrust = push - POLE * HALF_LENGTH * twist * cosine / (CART + POLE)
    rates = torch.stack([velocity, thrust, spin, twist], -1)
    return state + SECONDS * rates
