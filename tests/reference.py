"""Slow float64 references, written from the equations and not from the package."""

from __future__ import annotations

import numpy as np


def gae(
    reward: np.ndarray,
    value: np.ndarray,
    next_value: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    mask: np.ndarray,
    gamma: float,
    lam: float,
) -> np.ndarray:
    """A_t = Σ_k (γλ)^k δ_{t+k} up to the end of the episode or of the rows; one lane, one row at a time."""
    steps, lanes = reward.shape
    advantage = np.zeros((steps, lanes))
    for lane in range(lanes):
        for t in range(steps):
            if not mask[t, lane]:
                continue
            weight = 1.0
            for k in range(t, steps):
                bootstrap = 0.0 if terminated[k, lane] else gamma * next_value[k, lane]
                advantage[t, lane] += weight * (reward[k, lane] + bootstrap - value[k, lane])
                weight *= gamma * lam
                if terminated[k, lane] or truncated[k, lane]:
                    break
    return advantage


def rewards_to_go(
    reward: np.ndarray,
    next_value: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    mask: np.ndarray,
    gamma: float,
) -> np.ndarray:
    """Walk on from each action to where its episode ends or is cut; there, what is left is worth `next_value`."""
    steps, lanes = reward.shape
    returns = np.zeros((steps, lanes))
    for lane in range(lanes):
        for t in range(steps):
            weight = 1.0
            for k in range(t, steps) if mask[t, lane] else ():
                returns[t, lane] += weight * reward[k, lane]
                weight *= gamma
                if terminated[k, lane]:
                    break
                if truncated[k, lane] or k == steps - 1:
                    returns[t, lane] += weight * next_value[k, lane]
                    break
    return returns
