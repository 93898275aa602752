"""Train with an encoder of your own: what a sensor saw in the last moments, through a convolution over time."""

import gymnasium as gym
import numpy as np
from torch import nn

import proximo


class Trace(gym.Env):
    """Sixteen readings with a pulse in them, going up or down; to say which is worth 1."""

    observation_space, action_space = gym.spaces.Box(-9, 9, (16,)), gym.spaces.Discrete(2)

    def _seen(self):
        self.up, where = int(self.np_random.integers(2)), self.np_random.integers(13)
        readings = self.np_random.normal(0, 0.2, 16)
        readings[where : where + 4] += np.linspace(-1, 1, 4) * (1 if self.up else -1)
        return np.float32(readings)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 16
        return self._seen(), {}

    def step(self, action):
        reward, self.left = float(action == self.up), self.left - 1
        return self._seen(), reward, False, self.left == 0, {}


class Encoder(nn.Module):
    def __init__(self, observation_space):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(1, 16, 4), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten())

    def forward(self, observation):
        return self.layers(observation.unsqueeze(1))  # [N, 16] -> [N, 1, 16] -> [N, 16]


if __name__ == "__main__":
    settings = dict(steps=8_000, horizon=64, minibatches=4, epochs=4, lr=3e-3, gamma=0.0)
    run = proximo.train(Trace, encoder=Encoder, **settings)
    score = proximo.evaluate(run.folder, env=Trace, encoder=Encoder)
    print(f"right {score.mean:.1f} times of 16")
