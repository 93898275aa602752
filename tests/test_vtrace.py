"""V-trace against a slow reference and against what it must equal; the buffer of rollouts that it is for."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from proximo.advantages import gae, standardize, standardize_weighted, vtrace
from proximo.algorithms.ppo import PPO
from proximo.algorithms.reuse import Reuse
from proximo.algorithms.trpo_reuse import TRPOReuse
from proximo.batch import Batch
from proximo.compiler import compiling
from proximo.policy import blank
from proximo.sources.rollouts import Rollouts, judged
from proximo.state import restore
from tests.test_compiled import SPACES, batch_for, needs_compiler, policy_for

Columns = dict[str, np.ndarray]
SEEN = gym.spaces.Box(-1, 1, (5,))  # what `policy_for` sees


def reference(columns: Columns, logp: np.ndarray, gamma: float, lam: float, rho_bar: float, c_bar: float) -> Columns:
    """The sums of the paper, one lane and one row at a time: v_t = V + Σ_k γ^k (Π c) ρ δ, A_t = ρ (r + γ q − V)."""
    value, mask = columns["value"], columns["mask"]
    advantage, returns = np.zeros_like(value), value.copy()
    for t, lane in zip(*mask.nonzero(), strict=True):
        total, weight = 0.0, 1.0
        for k in range(t, len(value)):
            ratio = np.exp(logp[k, lane] - columns["logp"][k, lane])
            ended = columns["terminated"][k, lane] or columns["truncated"][k, lane]
            after = 0.0 if columns["terminated"][k, lane] else columns["next_value"][k, lane]
            delta = columns["reward"][k, lane] + gamma * after - value[k, lane]
            total += weight * min(rho_bar, ratio) * delta
            weight *= gamma * lam * min(c_bar, ratio)
            if ended:
                break
        returns[t, lane] += total
    for t, lane in zip(*mask.nonzero(), strict=True):
        ended = columns["terminated"][t, lane] or columns["truncated"][t, lane]
        after = 0.0 if columns["terminated"][t, lane] else columns["next_value"][t, lane]
        if not ended and t + 1 < len(value):  # the λ-mixture of the corrected value and the critic's
            after += lam * (returns[t + 1, lane] - value[t + 1, lane])
        rho = min(rho_bar, np.exp(logp[t, lane] - columns["logp"][t, lane]))
        advantage[t, lane] = rho * (columns["reward"][t, lane] + gamma * after - value[t, lane])
    return dict(advantage=advantage, returns=returns)


def collection(seed: int, steps: int, lanes: int, data: st.DataObject) -> Columns:
    """Any pattern of ends, with dead rows as under next-step autoreset or without."""
    rng = np.random.default_rng(seed)
    ends = np.array(data.draw(st.lists(st.sampled_from("..tub"), min_size=steps * lanes, max_size=steps * lanes)))
    ends, mask = ends.reshape(steps, lanes), np.ones((steps, lanes), bool)
    if data.draw(st.booleans()):
        for t in range(1, steps):
            mask[t] = ~((ends[t - 1] != ".") & mask[t - 1])
    terminated, truncated = np.isin(ends, ["t", "b"]) & mask, np.isin(ends, ["u", "b"]) & mask
    reward, value, next_value, logp = rng.normal(size=(4, steps, lanes))
    return dict(
        reward=reward, value=value, next_value=next_value, logp=logp, mask=mask,
        terminated=terminated, truncated=truncated,
    )  # fmt: skip


def batch_of(columns: Columns) -> Batch:
    return Batch(**{name: torch.tensor(column) for name, column in columns.items()})


cases = given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 12), lanes=st.integers(1, 4), data=st.data())


@settings(max_examples=500, deadline=None)
@cases
def test_vtrace_agrees_with_the_reference(seed: int, steps: int, lanes: int, data: st.DataObject) -> None:
    columns = collection(seed, steps, lanes, data)
    numbers = [data.draw(st.floats(0, 1)) for _ in range(2)] + [data.draw(st.floats(0.1, 3)) for _ in range(2)]
    logp = columns["logp"] + np.random.default_rng(seed + 1).normal(size=(steps, lanes))
    got = vtrace(batch_of(columns), torch.tensor(logp), *numbers)
    want, mask = reference(columns, logp, *numbers), columns["mask"]
    for name in ("advantage", "returns"):
        np.testing.assert_allclose(getattr(got, name)[mask], want[name][mask], rtol=1e-9, atol=1e-9)
    assert not got.advantage[~torch.tensor(mask)].any()
    assert torch.equal(got.logp, torch.tensor(logp)), "what follows takes the batch for the policy's own"


@settings(max_examples=200, deadline=None)
@cases
def test_on_policy_it_is_gae(seed: int, steps: int, lanes: int, data: st.DataObject) -> None:
    batch = batch_of(collection(seed, steps, lanes, data))
    gamma, lam = data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))
    got, want = vtrace(batch, batch.logp, gamma, lam), gae(batch, gamma, lam)
    torch.testing.assert_close(got.advantage, want.advantage)
    torch.testing.assert_close(got.returns[batch.mask], want.returns[batch.mask])


def test_on_policy_the_targets_are_discounted_returns() -> None:
    reward, value = torch.randn(2, 6, 1, dtype=torch.float64)
    no = torch.zeros(6, 1, dtype=torch.bool)
    next_value = torch.cat([value[1:], torch.ones(1, 1).double()])
    columns = dict(reward=reward, value=value, next_value=next_value, terminated=no, truncated=no, mask=~no)
    got = vtrace(Batch(**columns, logp=value), value, gamma=0.9)
    discounted = torch.ones(1).double()
    for t in reversed(range(6)):
        discounted = reward[t] + 0.9 * discounted
        torch.testing.assert_close(got.returns[t], discounted)


def test_nothing_of_a_dead_row_reaches_anything() -> None:
    mask = torch.tensor([[True], [False], [True]])
    no, ended = torch.zeros(3, 1, dtype=torch.bool), torch.tensor([[True], [False], [False]])
    odd = torch.tensor([[0.1], [torch.nan], [0.3]])
    columns = dict(reward=odd, value=odd, next_value=torch.ones(3, 1), terminated=no, truncated=ended, mask=mask)
    got = vtrace(Batch(**columns, logp=odd - 1e4), odd, 0.9)
    assert got.advantage[mask].isfinite().all()
    assert got.advantage[mask].tolist() == pytest.approx([0.9, 0.9])  # ρ is cut at 1


@needs_compiler
def test_compiled_it_is_the_same() -> None:
    policy = policy_for(SPACES["box"])
    batch, no = batch_for(policy), torch.zeros(16, 4, dtype=torch.bool)
    batch = batch.replace(reward=batch.returns, value=batch.advantage, terminated=no, truncated=no)
    batch = batch.replace(next_value=batch.advantage.roll(-1, 0))
    now = batch.logp + 0.3 * torch.randn(16, 4)
    one = vtrace(batch, now, 0.99, 0.95)
    with compiling(True):
        other = vtrace(batch, now, 0.99, 0.95)
    torch.testing.assert_close(other.advantage, one.advantage)
    torch.testing.assert_close(other.returns, one.returns)


def numbered(policy: Any, number: float, steps: int = 5, lanes: int = 2) -> Batch:
    """A collection whose rewards are all one number."""
    batch = blank(policy, SEEN, steps, lanes)
    live = torch.ones_like(batch.mask)
    return batch.replace(reward=torch.full_like(batch.reward, number), mask=live)


def test_the_last_collections_are_kept_side_by_side() -> None:
    policy = policy_for(SPACES["box"])
    rollouts = Rollouts(3, policy.device)
    for number in range(1, 6):
        rollouts.add(numbered(policy, number))
        together = rollouts.together()
        assert together.reward.shape == (5, 6)
        live = together.reward[together.mask].unique().tolist()
        assert live == list(range(max(number - 2, 1), number + 1))
        for lane in range(0, 6, 2):  # a collection's lanes stay together, and time runs as it did
            assert len(together.reward[:, lane : lane + 2].unique()) == 1


@pytest.mark.parametrize("name", SPACES)
def test_the_buffer_is_live_tensors_of_fixed_shape(name: str) -> None:
    policy = policy_for(SPACES[name])
    one, other = Rollouts(2, policy.device), Rollouts(2, policy.device)
    for rollouts in (one, other):
        rollouts.make_room(blank(policy, SEEN, 16, 4))
    live = one.state_tensors()
    no = torch.zeros(16, 4, dtype=torch.bool)
    batch = batch_for(policy).replace(start=no, reward=torch.randn(16, 4), terminated=no, truncated=no)
    for _ in range(3):
        one.add(batch.replace(next_value=torch.randn(16, 4)))
    assert all(tensor is live[key] for key, tensor in one.state_tensors().items())
    assert live["taken"] == 3
    restore(other.state_tensors(), live, "a test")
    for a, b in zip(one.together().leaves(), other.together().leaves(), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_next_values_are_those_of_true_next_observations() -> None:
    policy = policy_for(SPACES["box"])
    batch = blank(policy, SEEN, 5, 2).replace(observation=torch.randn(5, 2, 5), mask=torch.ones(5, 2, dtype=torch.bool))
    start = torch.zeros(5, 2, dtype=torch.bool)
    start[2, 0] = True  # an episode began in the step that ended another
    got, logp = judged(policy, batch.replace(start=start, next_value=torch.full((5, 2), 7.0)))
    now = policy.evaluate(batch)
    torch.testing.assert_close(got.value, now.value.detach())
    torch.testing.assert_close(logp, now.logp.detach())
    torch.testing.assert_close(got.next_value[[0, 2, 3], 0], now.value[[1, 3, 4], 0].detach())
    torch.testing.assert_close(got.next_value[:4, 1], now.value[1:, 1].detach())
    assert got.next_value[1, 0] == 7
    assert got.next_value[4].tolist() == [7, 7]


def two_arms(rewards: list[float], rho_bar: float) -> torch.Tensor:
    """The gradient in both logits, by enumeration: π takes arm 0 nine times in ten, μ took either as often."""
    logits = torch.tensor([0.9, 0.1], dtype=torch.float64).log().requires_grad_()
    yes, zero = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.float64)
    columns = dict(reward=torch.tensor([rewards]).double(), value=zero, next_value=zero, terminated=yes, truncated=~yes)
    batch = Batch(**columns, mask=yes, logp=zero + np.log(0.5))
    logp = logits.log_softmax(0)
    batch = standardize_weighted(vtrace(batch, logp.detach()[None], 0.9, rho_bar=rho_bar))
    return torch.autograd.grad((batch.advantage[0] * logp).mean(), logits)[0]


@pytest.mark.parametrize("rho_bar", [1.0, np.inf])
@pytest.mark.parametrize("reward", [1.0, -1.0, 300.0])
def test_of_two_arms_that_pay_the_same_none_is_better(reward: float, rho_bar: float) -> None:
    """Whatever the critic says, which is wrong here: a constant taken off ρ A would push towards the likelier one."""
    assert two_arms([reward, reward], rho_bar).tolist() == [0, 0]


def test_the_better_arm_gains_as_much_as_on_policy() -> None:
    gained = two_arms([0.8, 1.2], np.inf)
    on_policy = torch.tensor([0.9 * 0.1, -0.9 * 0.1]) * (0.8 - 1.2)  # Σ π(a) A(a) (1[a] − π), by hand
    torch.testing.assert_close(gained / gained.norm(), on_policy.double() / on_policy.norm())
    cut = two_arms([0.8, 1.2], 1.0)
    assert cut[1] > 0 > cut[0]


@settings(max_examples=100, deadline=None)
@cases
def test_with_weights_of_one_it_standardizes_as_without(seed: int, steps: int, lanes: int, data: st.DataObject) -> None:
    batch = gae(batch_of(collection(seed, steps, lanes, data)), 0.9, 0.8)
    weighted = batch.replace(weight=torch.ones_like(batch.advantage))
    torch.testing.assert_close(standardize_weighted(weighted).advantage, standardize(batch).advantage)


@pytest.mark.parametrize("make", [Reuse, TRPOReuse])
def test_where_nothing_can_be_gained_an_old_collection_moves_no_policy(make: Any) -> None:
    policy: Any = policy_for(gym.spaces.Discrete(3))
    with torch.no_grad():
        for parameter in policy.critic.parameters():
            parameter.zero_()
    algorithm = make(policy, make.Config(lr=1e-2, epochs=2, rollouts=2))
    batch, no = batch_for(policy), torch.zeros(16, 4, dtype=torch.bool)
    ones = torch.ones(16, 4)
    columns = dict(
        start=~no, terminated=~no, truncated=no, reward=ones, next_value=ones, logp=-ones
    )  # of another policy
    before = [p.clone() for p in policy.actor.parameters()]
    algorithm.step(batch.replace(**columns), 0.0)
    assert all(torch.equal(p, old) for p, old in zip(policy.actor.parameters(), before, strict=True))
    assert any(p.any() for p in policy.critic.parameters()), "the critic learned"


def test_one_rollout_is_ppo() -> None:
    ends = []
    for make, numbers in ((PPO, {}), (Reuse, dict(rollouts=1))):
        policy: Any = policy_for(SPACES["box"])
        batch, no = batch_for(policy), torch.zeros(16, 4, dtype=torch.bool)
        now = policy.evaluate(batch)
        batch = batch.replace(logp=now.logp.detach(), value=now.value.detach(), start=no, terminated=no, truncated=no)
        batch = batch.replace(reward=batch.returns, next_value=torch.cat([batch.value[1:], batch.value[:1]]))
        algorithm = make(policy, make.Config(lr=3e-3, **numbers))  # type: ignore[arg-type]
        torch.manual_seed(4)
        algorithm.step(batch, 0.0)
        ends.append(algorithm.optimizer.state["vector"].clone())
    torch.testing.assert_close(*ends, rtol=0, atol=1e-5)


def test_rows_of_older_policies_still_have_a_gradient() -> None:
    policy: Any = policy_for(SPACES["box"])
    algorithm = Reuse(policy, Reuse.Config(lr=1e-2, minibatches=1, epochs=1, rollouts=2))
    batch, no = batch_for(policy), torch.zeros(16, 4, dtype=torch.bool)
    columns = dict(start=no, terminated=no, truncated=no, reward=batch.returns, next_value=batch.returns)
    older = batch.replace(**columns, logp=batch.logp + 3)  # far outside any clip range
    algorithm.rollouts.add(older)
    newer = older.replace(mask=no)
    before = [p.clone() for p in policy.actor.parameters()]
    report = algorithm.step(newer, 0.0)
    assert report["clip_fraction"] == 0
    assert all(not torch.equal(p, old) for p, old in zip(policy.actor.parameters(), before, strict=True))


@pytest.mark.parametrize("make", [Reuse, TRPOReuse])
def test_rewards_of_old_collections_are_scaled_as_those_of_the_newest(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_for(SPACES["box"])
    algorithm = make(policy, make.Config(normalize_reward=True, rollouts=2, minibatches=2))
    batch, no = batch_for(policy), torch.zeros(16, 4, dtype=torch.bool)
    batch = batch.replace(start=no, terminated=no, truncated=no, next_value=batch.returns)
    rewards, seen = [factor * torch.rand(16, 4) for factor in (1, 30)], list[Batch]()

    def watching(together: Batch, *rest: Any) -> Batch:
        seen.append(together)
        return vtrace(together, *rest)

    monkeypatch.setattr(f"{make.__module__}.vtrace", watching)
    deviations = []
    for reward in rewards:
        algorithm.step(batch.replace(reward=reward), 0.0)
        deviations.append(algorithm.reward_scale.moments.std().float())
    assert deviations[1] > 10 * deviations[0]
    torch.testing.assert_close(seen[0].reward[:, :4], rewards[0] / deviations[0])
    torch.testing.assert_close(seen[1].reward, torch.cat(rewards, 1) / deviations[1])
    assert torch.equal(algorithm.rollouts.together().reward, torch.cat(rewards, 1)), "kept as they came"
