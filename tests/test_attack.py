"""The bound on updates under attack: every algorithm with advantages times a million, any kind of policy at random."""

from __future__ import annotations

import copy
import math
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Beta as TorchBeta
from torch.distributions import kl_divergence

import proximo
from proximo.algorithms import ALGORITHMS
from proximo.batch import Batch, tree_map
from proximo.models.actor_critic import ActorCritic
from proximo.models.distributions import Beta, SquashedGaussian
from proximo.models.distributions.composite import Composite
from proximo.models.images import ImageEncoder
from proximo.models.network import Network
from proximo.run.config import RunConfig
from proximo.run.ledger import Ledger
from proximo.sources.acting import judging
from tests.test_drift import (
    QUIET,
    State,
    Watched,
    jump,
    kl_of,
    of_policy,
    one_thread,
    rows,
    same,
    settled,
    snapshot,
    sum_of_kls,
    uniform,
    watched,
)
from tests.toys import RecallContinuous

__all__ = ["one_thread", "watched"]  # fixtures
STEPS, LANES, BOUND = 8, 3, 0.01
BOX = gym.spaces.Box(-2, 3, (2,))
WIDE = gym.spaces.Box(-1, 1, (5,))
GRAY = gym.spaces.Box(0, 255, (16, 16, 1), np.uint8)
MASKED = gym.spaces.Dict({"seen": WIDE, "action_mask": gym.spaces.MultiBinary(4)})
TREE = gym.spaces.Dict({"way": gym.spaces.Discrete(3), "far": gym.spaces.Tuple([BOX, gym.spaces.MultiBinary(2)])})
KINDS: dict[str, tuple[gym.Space, gym.Space, dict[str, Any]]] = {
    "squashed": (WIDE, BOX, dict(distribution="squashed")),
    "beta": (WIDE, BOX, dict(distribution="beta")),
    "deviations of the state": (WIDE, BOX, dict(state_std=True)),
    "tree": (WIDE, TREE, {}),
    "masked": (MASKED, gym.spaces.Discrete(4), {}),
    "masked, lstm": (MASKED, gym.spaces.Discrete(4), dict(memory="lstm", memory_size=6, sequence=4)),
    "gru": (WIDE, BOX, dict(memory="gru", memory_size=6, sequence=4)),
    "transformer": (WIDE, BOX, dict(memory="transformer", memory_size=4, memory_window=3, sequence=4)),
    "stack": (WIDE, BOX, dict(frame_stack=3, sequence=4)),
}
SEEING = KINDS | {"gray": (GRAY, gym.spaces.Discrete(3), dict(images="impala"))}


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_advantages_times_a_million(
    algo: str, watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they are estimated, and again where they are standardised; no limit to the gradient."""
    module, million = sys.modules[ALGORITHMS[algo].__module__], 0
    for name in ("standardize", "standardize_weighted", "gae", "monte_carlo", "vtrace"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, times(1e6, getattr(module, name)))
            million += 1
    assert million
    known = {field.name for field in fields(ALGORITHMS[algo].Config)}
    wild = dict(horizon=32, epochs=4, minibatches=4, lr=0.3, lr_max=1.0, max_grad_norm=1e9, value_coef=0.0)
    wild |= dict(delta=10.0, backtrack_above=1e9)
    settings = {name: value for name, value in wild.items() if name in known}
    run = proximo.train(RecallContinuous, algo, steps=1024, max_kl=BOUND, out=tmp_path / "run", **QUIET, **settings)
    assert max(row["kl_asked"] or math.inf for row in rows(run.folder)) > 1
    for batch, before, _, after, _ in watched:
        assert kl_of(run.policy, of_policy(before), of_policy(after), batch) <= BOUND


def times(factor: float, estimate: Any) -> Any:
    def scaled(batch: Batch, *rest: Any) -> Batch:
        batch = estimate(batch, *rest)
        return batch.replace(advantage=factor * batch.advantage)

    return scaled


@pytest.mark.parametrize("kind", SEEING)
def test_no_accepted_update_of_any_kind_of_policy_exceeds_the_bound(kind: str) -> None:
    """60 random cases each: weights, batches, bounds and updates, the wild and the broken among them."""
    seen, acts, numbers = SEEING[kind]
    torch.manual_seed(0)
    policy = ActorCritic(seen, acts, Network(hidden=(8,), normalize_observation=True, **numbers))
    counts, ledger = dict.fromkeys(("left", "cut", "undone"), 0), None
    torch.manual_seed(8)
    for _ in range(60):
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.copy_(uniform(0.1, 2) * torch.randn_like(parameter))
        batch = walked(policy)
        ledger = ledger or Ledger(policy, RunConfig(max_kl=1.0))
        bound = 10 ** uniform(-6, 1)
        ledger.config = RunConfig(max_kl=bound)
        before = snapshot(policy)
        asked, row = settled(ledger, policy, batch, lambda batch=batch: jump(policy, batch))
        alpha, finite = row["alpha"], all(tensor.isfinite().all() for tensor in asked.values())
        full = far(policy, before, asked, batch) if finite else math.inf
        assert far(policy, before, snapshot(policy), batch) <= bound
        assert (alpha == 1) == (full <= bound), (full, bound)
        assert alpha > 0 or same(snapshot(policy), before)
        counts["left" if alpha == 1 else "cut" if alpha else "undone"] += 1
    assert min(counts.values()) >= 1, counts


@torch.no_grad()
def walked(policy: ActorCritic) -> Batch:
    """What a source would give: some rows dead, episodes that begin anywhere, memories as they were."""
    mask, start = torch.rand(STEPS, LANES) < uniform(0.3, 1.1), torch.rand(STEPS, LANES) < 0.3
    mask[0, 0] = True
    seen: Any = 10 ** uniform(-1, 1) * torch.randn(STEPS, LANES, 5)
    if isinstance(policy.trunk.encoder, ImageEncoder):
        seen = torch.randint(0, 256, (STEPS, LANES, *GRAY.shape), dtype=torch.uint8)
    if policy.masked:
        allowed = torch.rand(STEPS, LANES, 4) < 0.6
        allowed[..., 0] |= ~allowed.any(-1)
        seen = {"seen": seen, "action_mask": allowed.to(torch.int8)}
    memory, kept, actions = policy.initial(LANES), [], []
    for t in range(STEPS):
        kept.append(memory)
        row, noise = tree_map(lambda x, t=t: x[t], seen), policy.noise(LANES)
        action, memory = policy.act(row, noise, memory, start[t]) if policy.remembers else policy.act(row, noise)
        actions.append(action)
    batch = Batch(observation=seen, action=stacked(actions), mask=mask, start=start)
    if policy.remembers:
        batch = batch.replace(memory=stacked(kept), last_memory=memory, last_start=torch.zeros(LANES, dtype=torch.bool))
    shown = batch.replace(last=tree_map(lambda x: x[-1], seen))
    return batch.replace(**vars(judging(policy, shown)(shown)))


def stacked(trees: list[Any]) -> Any:
    """Trees of one structure as one, its leaves stacked."""
    first = trees[0]
    if isinstance(first, dict):
        return {key: stacked([tree[key] for tree in trees]) for key in first}
    if isinstance(first, tuple):
        return tuple(stacked(list(parts)) for parts in zip(*trees, strict=True))
    return torch.stack(trees)


@torch.no_grad()
def far(policy: ActorCritic, old: State, new: State, batch: Batch) -> float:
    """Mean KL(old ‖ new) over the live rows: whole lanes in float64, and torch's own distributions."""
    rows, pair = batch.map(lambda x: x.double() if x.is_floating_point() else x), []
    for state in (old, new):
        one = copy.deepcopy(policy)
        one.load_state_dict(state)
        everything = one.double().evaluate(rows).distribution
        pair.append(tree_map(lambda x: x[batch.mask], everything))
    return kls(*pair).item() / int(batch.mask.sum())


def kls(one: Any, other: Any) -> Tensor:
    match one, other:
        case SquashedGaussian(base), SquashedGaussian(another):  # a bijection leaves KL as it is
            return sum_of_kls(base, another)
        case Beta(), Beta():
            return kl_divergence(*(TorchBeta(d.alpha, d.beta) for d in (one, other))).sum()
        case Composite(parts), Composite(others):
            pairs = [(parts[key], others[key]) for key in (parts if isinstance(parts, dict) else range(len(parts)))]
            return torch.stack([kls(*pair) for pair in pairs]).sum()
    return sum_of_kls(one, other)
