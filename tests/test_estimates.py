"""What each algorithm learns from: advantages and returns of the slow references, with its own γ and λ."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from proximo.algorithms import ALGORITHMS
from proximo.batch import Batch
from proximo.models.normalize import RewardScale
from tests import reference
from tests.test_variants import collected, fresh

GAMMA, LAM = 0.9, 0.6
RAW = ("a2c", "reinforce")  # whose advantages stay as they are
CASES = [*((name, {}) for name in ALGORITHMS), ("reinforce", dict(baseline=False))]


def episodes() -> tuple[Any, Batch]:
    """A policy, and a collection of it in which episodes are terminated, truncated, cut, and followed by others."""
    policy = fresh()
    batch = collected(policy)
    start, terminated, truncated = (torch.zeros_like(batch.mask) for _ in range(3))
    terminated[3, 0] = truncated[7, 1] = terminated[9, 2] = truncated[9, 3] = True
    truncated[-3, 0] = True  # what is left of lane 0 is dead
    start[1:] = (terminated | truncated)[:-1] & batch.mask[1:]
    following = torch.where(start[1:], batch.next_value[:-1], batch.value[1:])  # of what came next, where it is held
    next_value = torch.cat([following, batch.next_value[-1:]])
    ends = dict(start=start, terminated=terminated, truncated=truncated)
    return policy, batch.replace(**ends, next_value=next_value, reward=3 * batch.reward)


def doubles(batch: Batch, *names: str) -> list[np.ndarray]:
    columns = (getattr(batch, name) for name in names)
    return [x.numpy() if x.dtype is torch.bool else x.double().numpy() for x in columns]


def wanted(name: str, numbers: dict[str, Any], batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and returns [T, N] as the algorithm's paper has them, from rewards as they are to be learned from."""
    reward, value, next_value, terminated, truncated, mask = doubles(
        batch, "reward", "value", "next_value", "terminated", "truncated", "mask"
    )
    if name == "reinforce":
        returns = reference.rewards_to_go(reward, next_value, terminated, truncated, mask, GAMMA)
        return returns - value * numbers.get("baseline", True), returns
    advantage = reference.gae(reward, value, next_value, terminated, truncated, mask, GAMMA, LAM)
    returns = advantage + value
    if name not in RAW:
        advantage = (advantage - advantage[mask].mean()) / (advantage[mask].std(ddof=1) + 1e-8)
    return advantage, returns


@pytest.mark.parametrize("scaled", [False, True], ids=["rewards as they are", "rewards scaled"])
@pytest.mark.parametrize(("name", "numbers"), CASES, ids=[f"{n}{numbers or ''}" for n, numbers in CASES])
def test_it_learns_from_the_estimates_of_its_paper(
    name: str, numbers: dict[str, Any], scaled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm: Any = ALGORITHMS[name]
    known, seen = {field.name for field in fields(algorithm.Config)}, dict[str, Batch]()
    asked = dict(gamma=GAMMA, lam=LAM, normalize_reward=scaled, epochs=1, minibatches=1) | numbers
    policy, batch = episodes()
    learner = algorithm(policy, algorithm.Config(**{k: v for k, v in asked.items() if k in known}))
    inside = algorithm.step.__globals__
    for update in {"sgd", "natural_step"} & inside.keys():
        monkeypatch.setitem(inside, update, watching(inside[update], seen))
    learner.step(batch, 0.0)

    live = batch.mask
    rewards = RewardScale(GAMMA)(batch) if scaled else batch
    advantage, returns = wanted(name, numbers, rewards)
    for learned, column, by_hand in (("policy", "advantage", advantage), ("value", "returns", returns)):
        got = getattr(seen[learned], column)[:, : live.shape[1]][live]
        np.testing.assert_allclose(got.numpy(), by_hand[live.numpy()], rtol=1e-4, atol=1e-5)


def watching(update: Any, seen: dict[str, Batch]) -> Any:
    """The update, which remembers what the policy and what the value learn from: TRPO's and its kin's are two calls."""

    def watched(policy: Any, optimizer: Any, objective: Any, batch: Batch, *rest: Any) -> Any:
        prepare = next((x for x in rest[3:4] if x is not None), lambda rows: rows)
        seen["value"] = batch
        if "policy" not in seen:
            seen["policy"] = prepare(batch) if update.__name__ == "sgd" else batch
        return update(policy, optimizer, objective, batch, *rest)

    return watched
