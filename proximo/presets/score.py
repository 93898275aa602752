"""A2C and REINFORCE for any environment: what the task's own preset says (discount, steps, frames) stands over it.

Of REINFORCE, the last 100 training episodes: on CartPole 490 and 493 at 100,000 steps, seeds 0 and 1 (368 and 376 with
the default step size of 0.01 and nothing normalised), on LunarLander 60 at 300,000, seed 0 (−76 with 0.01).
"""

from __future__ import annotations

from proximo.presets.preset import Preset

# fmt: off
SCORE = (
    Preset(
        "a2c-any", "RL Baselines3 Zoo, a2c.yml, LunarLander, normalised", ("",),
        dict(steps=500_000, envs=8, horizon=5, lr=8.3e-4, anneal_lr=True, gamma=0.995,
             normalize_observation=True, normalize_reward=True),
        ("a2c",),
    ),
    Preset(
        "reinforce-any", "Tianshou's mujoco_reinforce.py (2,048 rows, normalised), three times its lr", ("",),
        dict(steps=500_000, envs=8, horizon=256, lr=3e-3, gamma=0.99,
             normalize_observation=True, normalize_reward=True),
        ("reinforce",),
    ),
)
# fmt: on
