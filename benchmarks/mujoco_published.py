"""What others published of PPO and its family on MuJoCo at 1M steps."""

from __future__ import annotations

Column = dict[str, float]  # task -> return; a task that was not published is not there


def column(*values: float | None) -> Column:
    names = ("HalfCheetah", "Hopper", "InvertedDoublePendulum", "InvertedPendulum", "Reacher", "Swimmer", "Walker2d")
    return {f"{name}-v5": value for name, value in zip(names, values, strict=True) if value is not None}


# Tianshou: examples/mujoco/README.md, 10 seeds, the largest over time of the mean over seeds, v2 and v3 tasks.
# SB3 Zoo: RL Baselines3 Zoo's benchmark.md, one run, settings tuned for each task, v3.
# CleanRL: its documentation, 3 seeds, v4. The paper: arXiv:1707.06347, read off figure 3, 3 seeds, v1.
# OpenAI Baselines: its benchmark page, read off curves, v1. Spinning Up: its bench pages, read off curves.
PUBLISHED: dict[str, dict[str, Column]] = {
    "ppo": {
        "Tianshou": column(5783.9, 2609.3, 9231.3, 1000, -4.1, 66.7, 3588.5),
        "SB3 Zoo": column(5819, 2410, None, None, None, 282, 3479),
        "CleanRL": column(1443, 2383, None, 963, None, None, 2288),
        "PPO paper": column(1800, 2330, 8000, 1000, -7, 108, 3460),
        "OpenAI Baselines": column(1700, 2400, 7350, 940, -6, 111, 3510),
        "Spinning Up": column(1670, 1850, None, None, None, 120, 1230),
    },
    "trpo": {
        "Tianshou": column(4471.2, 2046.0, 8435.2, 1000, -5.1, 40.9, 3826.7),
        "SB3 Zoo": column(1785, 3618, None, None, None, 366, 4933),
        "PPO paper": column(0, 2100, 200, 1000, -115, 121, 1100),
        "OpenAI Baselines": column(1350, 2200, 7000, 910, -5, 95, 2350),
    },
    "a2c": {
        "Tianshou": column(1829.9, 1253.2, 9257.7, 1000, -6.7, 36.6, 1091.6),
        "PPO paper": column(1000, 900, 7100, 1000, -24, 31, 850),
    },
    "natural": {"Tianshou": column(3485.2, 1915.2, 9243.2, 1000, -4.5, 31.5, 2503.2)},
}

# On single tasks others are better: SB3 Zoo on HalfCheetah, ikostrikov's PyTorch PPO on Walker2d (some 4,000).
BEST_COLUMN = "the best published column of PPO (Tianshou's; on Swimmer SB3 Zoo's, γ = 0.9999)"
BEST: Column = PUBLISHED["ppo"]["Tianshou"] | {"Swimmer-v5": 282}

# The paper's table 1: average normalised score on the seven tasks, 3 seeds.
ABLATION: dict[str, float] = {
    "unconstrained": -0.39,
    "clip-0.1": 0.76,
    "paper": 0.82,
    "clip-0.3": 0.70,
    "penalty-0.003": 0.68,
    "penalty": 0.74,
    "penalty-0.03": 0.71,
    "fixed-kl-0.3": 0.62,
    "fixed-kl-1.0": 0.71,
    "fixed-kl-3.0": 0.72,
    "fixed-kl-10.0": 0.69,
}
KINDS = (("clip-0.1", "paper", "clip-0.3"), ("penalty-0.003", "penalty", "penalty-0.03"),
         ("fixed-kl-0.3", "fixed-kl-1.0", "fixed-kl-3.0", "fixed-kl-10.0"))  # fmt: skip
LABELS: dict[str, str] = {
    "unconstrained": "no clipping or penalty",
    "clip-0.1": "clipping, ε = 0.1",
    "paper": "clipping, ε = 0.2",
    "clip-0.3": "clipping, ε = 0.3",
    "penalty-0.003": "adaptive KL, d = 0.003",
    "penalty": "adaptive KL, d = 0.01",
    "penalty-0.03": "adaptive KL, d = 0.03",
    "fixed-kl-0.3": "fixed KL, β = 0.3",
    "fixed-kl-1.0": "fixed KL, β = 1",
    "fixed-kl-3.0": "fixed KL, β = 3",
    "fixed-kl-10.0": "fixed KL, β = 10",
}
