"""Ring two: what must be equal by mathematics."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from proximo.advantages import gae, standardize
from proximo.batch import Batch
from proximo.compiler import compiling, fuse
from proximo.models.actor_critic import ActorCritic
from proximo.models.network import Network
from proximo.objectives import clip, entropy, value_error
from proximo.reduce import masked_mean
from tests.test_compiled import needs_compiler

SPACES = [
    gym.spaces.Discrete(4),
    gym.spaces.MultiDiscrete([2, 3]),
    gym.spaces.MultiBinary(3),
    gym.spaces.Box(-1, 1, (2,)),
]


def random_batch(policy: ActorCritic, rows: int = 64) -> Batch:
    observation = torch.randn(rows, 5, dtype=torch.float64)
    action = policy.act(observation, policy.noise(rows).double())[0]
    batch = Batch(observation=observation, action=action, mask=torch.rand(rows) < 0.8)
    batch = batch.replace(advantage=torch.randn(rows).double(), returns=torch.randn(rows).double())
    return batch.replace(logp=policy.evaluate(batch).logp.detach())


def gradient(loss: Tensor, policy: ActorCritic) -> Tensor:
    grads = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(policy.parameters(), grads)])  # noqa: B905


def policy_for(space: gym.Space) -> ActorCritic:
    torch.manual_seed(1)
    return ActorCritic(gym.spaces.Box(-1, 1, (5,)), space, Network()).double()


@pytest.mark.parametrize("space", SPACES, ids=lambda s: type(s).__name__)
def test_at_ratio_one_clip_surrogate_and_score_have_one_gradient(space: gym.Space) -> None:
    policy = policy_for(space)
    batch = random_batch(policy)
    clipped, _ = clip(0.2)(policy.evaluate(batch), batch)
    logp = policy.evaluate(batch).logp
    surrogate = -masked_mean((logp - batch.logp).exp() * batch.advantage, batch.mask)
    score = -masked_mean(policy.evaluate(batch).logp * batch.advantage, batch.mask)
    wanted = gradient(score, policy)
    assert wanted.norm() > 1e-3
    torch.testing.assert_close(gradient(clipped, policy), wanted, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(gradient(surrogate, policy), wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("space", SPACES, ids=lambda s: type(s).__name__)
def test_dead_rows_and_order_change_nothing(space: gym.Space) -> None:
    policy = policy_for(space)
    batch = random_batch(policy)
    objective = clip(0.2) + 0.5 * value_error() - 0.1 * entropy()
    wanted = gradient(objective(policy.evaluate(batch), batch)[0], policy)
    alive = batch.part(batch.mask)
    torch.testing.assert_close(gradient(objective(policy.evaluate(alive), alive)[0], policy), wanted)
    shuffled = batch.part(torch.randperm(64))
    torch.testing.assert_close(gradient(objective(policy.evaluate(shuffled), shuffled)[0], policy), wanted)


def test_truncated_is_not_terminated() -> None:
    no, yes = torch.tensor([[False]]), torch.tensor([[True]])
    one = torch.ones(1, 1)
    batch = Batch(reward=one, value=one, next_value=5 * one, mask=yes)
    truncated = gae(batch.replace(terminated=no, truncated=yes), 0.5, 0.9).advantage.item()
    terminated = gae(batch.replace(terminated=yes, truncated=no), 0.5, 0.9).advantage.item()
    assert (truncated, terminated) == (1 + 0.5 * 5 - 1, 1 - 1)


def test_gae_at_one_is_monte_carlo_and_at_zero_is_td() -> None:
    rng = np.random.default_rng(0)
    reward, value = torch.tensor(rng.normal(size=(2, 6, 1)))
    no = torch.zeros(6, 1, dtype=torch.bool)
    next_value = torch.cat([value[1:], torch.ones(1, 1).double()])
    batch = Batch(reward=reward, value=value, next_value=next_value, terminated=no, truncated=no, mask=~no)
    discounted = torch.ones(1).double()
    for t in reversed(range(6)):
        discounted = reward[t] + 0.9 * discounted
    torch.testing.assert_close(gae(batch, 0.9, 1.0).returns[0], discounted)
    torch.testing.assert_close(gae(batch, 0.9, 0.0).advantage, reward + 0.9 * next_value - value)


@pytest.mark.parametrize("number", [0.0, -123.4, 1.7, 0.1, -7e-3, 9351.9, 1e6])
@pytest.mark.parametrize(
    ("rows", "compile"),
    [*((rows, False) for rows in (2, 64, 2000, 2048, 65_536)), pytest.param(65_536, True, marks=needs_compiler)],
)
def test_advantages_that_are_all_the_same_say_nothing(rows: int, compile: bool, number: float) -> None:
    """Their mean in float32 is not quite theirs, and what is left is no advantage."""
    mask, same = torch.arange(rows) % 7 != 3, torch.full((rows,), number)

    def standardized(advantage: Tensor, mask: Tensor) -> tuple[Tensor]:
        return (standardize(Batch(advantage=advantage, mask=mask)).advantage,)

    with compiling(compile):
        call = fuse(standardized, [same, mask]) if compile else standardized
    assert call is not None
    assert call(same, mask)[0][mask].abs().max() == 0
    apart = max(1.0, abs(number)) * 1e-3 * (torch.arange(rows) % 2)
    assert call(same + apart, mask)[0][mask].std() == pytest.approx(1, abs=1e-3)


def test_standardize_ignores_shift_and_scale() -> None:
    advantage, mask = torch.randn(50).double(), torch.rand(50) < 0.7
    one = standardize(Batch(advantage=advantage, mask=mask)).advantage
    other = standardize(Batch(advantage=7 * advantage - 3, mask=mask)).advantage
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert one[mask].mean().abs() < 1e-12


def test_an_overflow_in_a_dead_row_reaches_no_gradient() -> None:
    policy = policy_for(SPACES[0])
    batch = random_batch(policy)
    objective = clip(0.2) + 0.5 * value_error() - 0.1 * entropy()
    wanted = gradient(objective(policy.evaluate(batch), batch)[0], policy)
    dead = batch.replace(logp=torch.where(batch.mask, batch.logp, -1e9))
    assert not batch.mask.all()
    torch.testing.assert_close(gradient(objective(policy.evaluate(dead), dead)[0], policy), wanted)


def test_a_part_of_steps_of_lanes_and_of_pairs() -> None:
    """Units are rows of a flat batch, and lanes of any other: of pairs both sides, with what was remembered before."""
    places = torch.tensor([2, 0])
    for shape, found in [((3,), (2,)), ((4, 3), (4, 2)), ((4, 3, 2), (4, 2, 2))]:
        mask = torch.rand(shape) < 0.5
        x = torch.randn(*shape, 5)
        part = Batch(observation=x, mask=mask).part(places)
        assert part.mask.shape == found
        torch.testing.assert_close(part.observation, x[places] if len(shape) == 1 else x[:, places], rtol=0, atol=0)
    bools = torch.tensor([True, False, True])
    assert torch.equal(Batch(mask=bools, reward=x[0, :, 0, 0]).part(bools).reward, x[0, ::2, 0, 0])
