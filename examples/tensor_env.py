"""Train on an environment of your own in tensors: hundreds of rooms at once, on the CPU or (device="cuda") on a GPU."""

import gymnasium as gym
import torch

import proximo
from proximo.sources.tensors import Transition


class Rooms(torch.nn.Module):
    single_observation_space = gym.spaces.Box(-100, 100, (1,))
    single_action_space = gym.spaces.Box(-float("inf"), float("inf"), (1,))

    def __init__(self, rooms, device="cpu"):
        super().__init__()
        self.num_envs, self.device = rooms, torch.device(device)
        self.register_buffer("temperature", torch.zeros(rooms, 1, device=device))
        self.register_buffer("minutes", torch.zeros(rooms, device=device))

    def reset(self, seed):
        self.temperature.uniform_(-20, 20, generator=torch.Generator(self.device).manual_seed(seed))
        self.minutes.zero_()
        return self.temperature

    def noise(self, steps):  # where the episodes begin that begin in these steps
        return torch.empty(steps, self.num_envs, 1, device=self.device).uniform_(-20, 20)

    def step(self, action, noise):
        final, minutes = self.temperature + 2 * action.clamp(-1, 1), self.minutes + 1
        truncated = minutes >= 50
        self.temperature = torch.where(truncated.unsqueeze(-1), noise, final)
        self.minutes = torch.where(truncated, 0, minutes)
        return Transition(self.temperature, -final.abs().squeeze(-1), torch.zeros_like(truncated), truncated, final)


if __name__ == "__main__":
    run = proximo.train(Rooms(256), steps=300_000, horizon=16, epochs=4, minibatches=16, lr=1e-3, gamma=0.9)
    agent = proximo.load(run.folder)
    print("at −15 degrees heat with", agent.act([-15.0]), "at +15 with", agent.act([15.0]))
