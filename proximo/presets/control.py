"""PPO for Gymnasium's control tasks, MuJoCo's aside (`mujoco.py`).

RL Baselines3 Zoo weighs the squared error by 0.5; here its half is weighed, so that its 0.5 is a value_coef of 1.
"""

from __future__ import annotations

from proximo.presets.preset import Preset

# fmt: off
CONTROL = (
    Preset(
        "cartpole", "RL Baselines3 Zoo, ppo.yml, CartPole-v1, with a constant clip", ("CartPole-",),
        dict(steps=100_000, envs=8, horizon=32, epochs=20, minibatches=1, lr=1e-3, gamma=0.98, lam=0.8,
             value_coef=1.0),
    ),
    Preset(
        "acrobot", "RL Baselines3 Zoo, ppo.yml, Acrobot-v1", ("Acrobot-",),
        dict(steps=1_000_000, envs=16, horizon=256, epochs=4, minibatches=64, lr=3e-4, anneal_lr=False,
             gamma=0.99, lam=0.94, value_coef=1.0, normalize_observation=True, normalize_reward=True),
    ),
    Preset(
        "pendulum", "RL Baselines3 Zoo, ppo.yml, Pendulum-v1, annealed, plain Gaussian noise", ("Pendulum-",),
        dict(steps=300_000, envs=4, horizon=1024, epochs=10, minibatches=64, lr=1e-3,
             gamma=0.9, lam=0.95, value_coef=1.0),
    ),
    Preset(
        "lunarlander", "RL Baselines3 Zoo, ppo.yml, LunarLander, with reward normalisation", ("LunarLander",),
        dict(steps=1_000_000, envs=16, horizon=1024, epochs=4, minibatches=256, lr=3e-4, anneal_lr=False,
             gamma=0.999, lam=0.98, value_coef=1.0, entropy_coef=0.01, normalize_reward=True),
    ),
    Preset(
        "discrete", "Schulman et al. 2017, table 5, with more and smaller minibatches, for any discrete actions", (),
        dict(steps=500_000, envs=8, horizon=128, epochs=10, minibatches=8, lr=3e-4, entropy_coef=0.01),
    ),
    Preset(
        "continuous", "Schulman et al. 2017, table 3, on eight lanes, for any continuous actions", (),
        dict(steps=1_000_000, envs=8, horizon=256, epochs=10, minibatches=32, lr=3e-4,
             normalize_observation=True, normalize_reward=True),
    ),
)
# fmt: on
