"""Train on an environment of your own: ten lines of it, three of training."""

import gymnasium as gym
import numpy as np

import proximo


class Thermostat(gym.Env):
    observation_space, action_space = gym.spaces.Box(-50, 50, (1,)), gym.spaces.Box(-1, 1, (1,))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.temperature, self.minutes = self.np_random.uniform(-20, 20), 0
        return np.float32([self.temperature]), {}

    def step(self, action):
        self.temperature, self.minutes = self.temperature + 2 * float(action[0]), self.minutes + 1
        return np.float32([self.temperature]), -abs(self.temperature), False, self.minutes >= 50, {}


if __name__ == "__main__":
    run = proximo.train(Thermostat, steps=100_000)
    agent = proximo.load(run.folder)
    print("at −15 degrees heat with", agent.act([-15.0]), "at +15 with", agent.act([15.0]))
