"""Settings for MuJoCo. The two of PPO are those that benchmarks/mujoco.py compares with what was published.

`paper`, which is taken where nothing else is asked for, is what Schulman et al. 2017 ran, as far as it is known. From
the paper (section 6.1 and table 3): two hidden layers of 64 tanh units, separate towers, a horizon of 2,048, Adam
with 3e-4, 10 epochs, minibatches of 64, γ 0.99, λ 0.95, ε 0.2, no entropy bonus. From its code alone (OpenAI
Baselines, ppo1/run_mujoco.py, mlp_policy.py, pposgd_simple.py): observations are normalised, rewards are not, the
step size falls linearly to zero, Adam's ε is 1e-5, gradients are not clipped. Where it differs from the code: ε stays
what it is (the code lets it fall with the step size), ½ (V − R)² is weighed by 0.5 (the code's (V − R)² by 1, which
would be a value_coef of 2), observations are clipped to ±10 (the code's ±5) and a batch is taken into their statistics
after it was learned from (the code's before), weights are orthogonal (the code normalises columns), advantages are
standardised in each minibatch (the code's whole batch), and an episode cut by the time limit is bootstrapped (the code
takes it for an end).

`tuned` is PPO-Penalty (`--algo penalty`) with one setting for all tasks but Swimmer: many short lanes (32 of 64 steps),
rewards scaled, a deviation that begins low, at e^−1, gradients not clipped. The lanes and the deviation are after
Tianshou's (examples/mujoco/mujoco_ppo.py), whose PPO is the best that was published at 1M steps. Like it `tuned` was
PPO-Clip with advantages estimated anew before every pass (`--algo recompute`), by the last evaluations of seed 0:

    lanes × steps, deviation    HalfCheetah    Hopper    Walker2d
    8 × 256, e^−0.5                   4,060     3,038       1,527
    64 × 32, e^−0.5                   5,617       440       3,514
    64 × 32, e^−1                     6,522     1,743       4,673
    16 × 128, e^−1                    5,408     3,264           –
    32 × 64, e^−1 (taken)             6,047     3,326       3,307

But seed 1 then had 5,192, 968 on Hopper, and 1,518 on InvertedDoublePendulum (seed 0: 2,592), where the clip lets go of
what was learned. With the penalty instead seed 1 has 5,903, 3,265, 8,433 and 3,938 on Walker2d.

What is solved may still be forgotten: all lanes begin together, at every checkpoint, and so episodes of 1,000 steps end
together. One batch in 16 holds 32 beginnings, and 15 none: how the two pendulums begin is forgotten meanwhile. Four
lanes of 512 steps have beginnings in every other batch, and were the better by seeds 0 and 1 (9,359 and 9,351 on
InvertedDoublePendulum, 3,618 and 3,596 on Hopper). Seeds 2 to 4 said otherwise: 7,991, 9,360, 7,964, and 1,347, 2,476,
1,956 where 32 lanes have 3,346, 3,517, 3,385.

`tuned-swimmer` is the exception: Swimmer's strokes are so long that it needs a discount near 1. In a run of each,
0.9999 alone got it to 100; with one lane of 2,048 steps, a deviation that begins at 1 and a constant step size, as in
RL Baselines3 Zoo, PPO-Clip reached 150, and 320 with advantages made anew, which it is made for.
"""

from __future__ import annotations

from typing import Any

from proximo.presets.preset import PROXIMAL, Preset

# fmt: off
MUJOCO = (
    "Ant-", "HalfCheetah-", "Hopper-", "Humanoid-", "HumanoidStandup-", "InvertedDoublePendulum-",
    "InvertedPendulum-", "Pusher-", "Reacher-", "Swimmer-", "Walker2d-",
)
# fmt: on
PAPER: dict[str, Any] = dict(
    steps=1_000_000,
    envs=1,
    horizon=2048,
    epochs=10,
    minibatches=32,
    lr=3e-4,
    gamma=0.99,
    lam=0.95,
    max_grad_norm=1e6,
    normalize_observation=True,
)  # fmt: skip

TUNED: dict[str, Any] = dict(
    steps=1_000_000, envs=32, horizon=64, epochs=10, minibatches=32, lr=3e-4, gamma=0.99, lam=0.95,
    max_grad_norm=1e6, log_std_init=-1.0, normalize_observation=True, normalize_reward=True,
)  # fmt: skip
SWIMMER = TUNED | dict(envs=1, horizon=2048, gamma=0.9999, log_std_init=0.0, anneal_lr=False)

PENALTY, RECOMPUTE = ("penalty", *PROXIMAL), ("recompute", *PROXIMAL)  # made for the first
NEEDS = "tuned, with what Swimmer needs (RL Baselines3 Zoo, ppo.yml, Swimmer-v3)"

A2C: dict[str, Any] = dict(
    steps=1_000_000, envs=16, horizon=5, lr=7e-4, anneal_lr=True, gamma=0.99, lam=0.95, value_coef=1.0,
    entropy_coef=0.01, max_grad_norm=0.5, log_std_init=-0.5, normalize_observation=True, normalize_reward=True,
)  # fmt: skip

FISHER_RAO = "as paper, with τ of Lascu et al. 2025 for Walker2d: a density of many coordinates is small"

PAPERS = (
    Preset("a2c-mujoco", "after Tianshou's mujoco_a2c.py, the step size falling to zero", MUJOCO, A2C, ("a2c",)),
    Preset("fisher-rao-mujoco", FISHER_RAO, MUJOCO, PAPER | dict(tau=3e-4), ("fisher_rao",)),
    Preset("paper", "Schulman et al. 2017, table 3, and OpenAI Baselines' ppo1, which it was run with", MUJOCO, PAPER),
    Preset("tuned", "for PPO-Penalty on MuJoCo but Swimmer, after Tianshou's examples/mujoco", (), TUNED, PENALTY),
    Preset("tuned-swimmer", NEEDS, (), SWIMMER, RECOMPUTE),
)
