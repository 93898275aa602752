"""Trust regions and natural gradients for Gymnasium's control tasks: TRPO's settings serve both."""

from __future__ import annotations

from proximo.presets.mujoco import MUJOCO
from proximo.presets.preset import Preset

# fmt: off
SETTINGS = (
    (
        "trust-cartpole", "RL Baselines3 Zoo, trpo.yml, CartPole-v1", ("CartPole-",),
        dict(steps=100_000, envs=2, horizon=512, epochs=20, minibatches=2, lr=1e-3, anneal_lr=False, gamma=0.99,
             lam=0.98, cg_iterations=15, cg_damping=1e-3, fisher_fraction=1.0),
    ),
    (
        "trust-mujoco", "RL Baselines3 Zoo, trpo.yml, MuJoCo, with the paper's conjugate gradient", MUJOCO,
        dict(steps=1_000_000, envs=1, horizon=2048, epochs=20, minibatches=16, lr=1e-3, anneal_lr=False, gamma=0.99,
             lam=0.95, normalize_observation=True, normalize_reward=True),
    ),
    (
        "trust-any", "RL Baselines3 Zoo, trpo.yml, LunarLanderContinuous-v3, on eight lanes, for any other", ("",),
        dict(steps=500_000, envs=8, horizon=256, epochs=20, minibatches=16, lr=1e-3, anneal_lr=False, gamma=0.99,
             lam=0.95, normalize_observation=True, normalize_reward=True),
    ),
)
# fmt: on
TRUST = tuple(Preset(*setting, algos=("trpo", "natural", "trpo_reuse")) for setting in SETTINGS)
