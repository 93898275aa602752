"""Ring one: every formula by hand, and against a slow float64 reference or an independent library."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Normal as TorchNormal
from torch.distributions import kl_divergence

from proximo.advantages import explained_variance, gae, monte_carlo, standardize
from proximo.batch import Batch
from proximo.coefficients import linear
from proximo.models.distributions import Bernoulli, Categorical, Gaussian, MultiCategorical, gumbel, head_for, logistic
from proximo.models.normalize import Normalizer, RewardScale, RunningMoments
from proximo.objectives import clip, entropy, value_error
from proximo.policy import Evaluation
from proximo.reduce import masked_mean, masked_variance
from tests import reference


@settings(max_examples=1000, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 12), lanes=st.integers(1, 4), data=st.data())
def test_gae_and_monte_carlo_agree_with_the_references_for_every_pattern_of_ends(
    seed: int, steps: int, lanes: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    gamma, lam = data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))
    ends = np.array(data.draw(st.lists(st.sampled_from("..tub"), min_size=steps * lanes, max_size=steps * lanes)))
    ends = ends.reshape(steps, lanes)  # goes on, terminated, truncated (u), both
    next_step = data.draw(st.booleans())  # under next-step autoreset the row after an end is dead
    mask = np.ones((steps, lanes), bool)
    for t in range(1, steps):
        mask[t] = ~((ends[t - 1] != ".") & mask[t - 1]) if next_step else True
    terminated, truncated = np.isin(ends, ["t", "b"]) & mask, np.isin(ends, ["u", "b"]) & mask
    reward, value, next_value = rng.normal(size=(3, steps, lanes)) * 10 ** rng.uniform(-2, 2)
    columns = dict(reward=reward, value=value, next_value=next_value, mask=mask)
    batch = Batch(
        **{k: torch.tensor(v) for k, v in {**columns, "terminated": terminated, "truncated": truncated}.items()}
    )
    got = gae(batch, gamma, lam)
    want = reference.gae(reward, value, next_value, terminated, truncated, mask, gamma, lam)
    np.testing.assert_allclose(got.advantage.numpy(), want, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(got.returns.numpy(), want + value, rtol=1e-10, atol=1e-10)
    want = reference.rewards_to_go(reward, next_value, terminated, truncated, mask, gamma)
    with_baseline, without = (monte_carlo(batch, gamma, baseline) for baseline in (True, False))
    np.testing.assert_allclose(without.returns.numpy(), want, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(without.advantage.numpy(), want, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(with_baseline.advantage.numpy(), (want - value) * mask, rtol=1e-10, atol=1e-10)


def test_gae_by_hand() -> None:
    ones = torch.ones(3, 1, dtype=torch.float64)
    no = torch.zeros(3, 1, dtype=torch.bool)
    batch = Batch(reward=ones, value=0 * ones, next_value=2 * ones, terminated=no, truncated=no, mask=~no)
    # δ = 1 + 0.5·2 = 2 in each row, carried by γλ = 0.25
    assert gae(batch, 0.5, 0.5).advantage.squeeze(1).tolist() == [2 + 0.25 * 2.5, 2 + 0.25 * 2, 2]


def test_nan_in_a_dead_row_reaches_nothing() -> None:
    mask = torch.tensor([[True], [False], [True]])
    no = torch.zeros(3, 1, dtype=torch.bool)
    ended = torch.tensor([[True], [False], [False]])
    numbers = torch.tensor([[1.0], [torch.nan], [1.0]])
    batch = Batch(
        reward=numbers, value=numbers * 0 + 1, next_value=torch.ones(3, 1), terminated=no, truncated=ended, mask=mask
    )
    got = gae(batch, 0.9, 0.9)
    assert got.advantage[mask].isfinite().all()
    assert standardize(got).advantage[mask].isfinite().all()


def test_masked_moments() -> None:
    x = torch.tensor([1.0, 2.0, 6.0, torch.inf])
    mask = torch.tensor([True, True, True, False])
    assert masked_mean(x, mask) == 3
    assert masked_variance(x, mask) == pytest.approx(14 / 3)
    assert masked_variance(x, mask, unbiased=True) == pytest.approx(7)
    assert masked_mean(x, torch.zeros(4, dtype=torch.bool)) == 0


def test_explained_variance() -> None:
    mask = torch.ones(4, dtype=torch.bool)
    returns = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert explained_variance(Batch(returns=returns, value=returns, mask=mask)) == 1
    assert explained_variance(Batch(returns=returns, value=returns.mean().expand(4), mask=mask)) == 0
    assert explained_variance(Batch(returns=torch.ones(4), value=returns, mask=mask)).isnan()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [(1.0, 2.0, -2.0, 0), (1.5, 2.0, -2.4, 1), (0.5, 2.0, -1.0, 1), (1.5, -2.0, 3.0, 1), (0.5, -2.0, 1.6, 1)],
)
def test_clip_by_hand(ratio: float, advantage: float, loss: float, clipped: float) -> None:
    logp = torch.tensor([ratio], dtype=torch.float64).log()
    batch = Batch(logp=0 * logp, advantage=torch.tensor([advantage], dtype=torch.float64), mask=torch.tensor([True]))
    opinion = Evaluation(logp, logp, Categorical(logp))
    got, seen = clip(0.2)(opinion, batch)
    assert got.item() == pytest.approx(loss)
    assert seen["clip_fraction"] == clipped
    assert seen["kl"].item() == pytest.approx(ratio - 1 - np.log(ratio))


def test_terms_compose() -> None:
    logits = torch.randn(5, 3, dtype=torch.float64)
    opinion = Evaluation(torch.randn(5).double(), torch.randn(5).double(), Categorical.from_logits(logits))
    mask = torch.tensor([True, True, False, True, True])
    batch = Batch(
        logp=torch.randn(5).double(), advantage=torch.randn(5).double(), returns=torch.randn(5).double(), mask=mask
    )
    parts = [term(opinion, batch)[0] for term in (clip(0.1), value_error(), entropy())]
    total, seen = (clip(0.1) + 0.5 * value_error() - 0.01 * entropy())(opinion, batch)
    torch.testing.assert_close(total, parts[0] + 0.5 * parts[1] - 0.01 * parts[2])
    assert [seen[name] for name in ("policy_loss", "value_loss", "entropy")] == parts
    torch.testing.assert_close(parts[1], 0.5 * (opinion.value - batch.returns)[mask].square().mean())


@pytest.mark.parametrize("seed", range(5))
def test_distributions_agree_with_torch(seed: int) -> None:
    torch.manual_seed(seed)
    a, b = torch.randn(2, 7, 4, dtype=torch.float64)
    std_a, std_b = torch.randn(2, 4, dtype=torch.float64)
    one, two = TorchCategorical(logits=a), TorchCategorical(logits=b)
    cases = [
        (Categorical.from_logits(a), Categorical.from_logits(b), one, two, False),
        (Bernoulli(a), Bernoulli(b), TorchBernoulli(logits=a), TorchBernoulli(logits=b), True),
        (Gaussian(a, std_a), Gaussian(b, std_b), TorchNormal(a, std_a.exp()), TorchNormal(b, std_b.exp()), True),
    ]
    for ours, others, theirs, theirs_other, many in cases:
        action = theirs.sample()
        total = (lambda x: x.sum(-1)) if many else (lambda x: x)
        torch.testing.assert_close(ours.logp(action), total(theirs.log_prob(action)))
        torch.testing.assert_close(ours.entropy(), total(theirs.entropy()))
        torch.testing.assert_close(ours.kl(others), total(kl_divergence(theirs, theirs_other)))  # type: ignore[arg-type]
    pair = MultiCategorical((Categorical.from_logits(a), Categorical.from_logits(b)))
    action = torch.stack([one.sample(), two.sample()], -1)
    torch.testing.assert_close(pair.logp(action), one.log_prob(action[:, 0]) + two.log_prob(action[:, 1]))
    torch.testing.assert_close(pair.entropy(), one.entropy() + two.entropy())


def test_noise_selects_actions_with_the_right_frequencies() -> None:
    torch.manual_seed(0)
    n, cpu = 200_000, torch.device("cpu")
    p = torch.tensor([0.1, 0.2, 0.7])
    drawn = Categorical(p.log().expand(n, 3)).sample(gumbel(n, 3, device=cpu)).bincount() / n
    assert (drawn - p).abs().max() < 5 * (0.25 / n) ** 0.5
    yes = Bernoulli(p.logit().expand(n, 3)).sample(logistic(n, 3, device=cpu)).mean(0)
    assert (yes - p).abs().max() < 5 * (0.25 / n) ** 0.5
    drawn = Gaussian(torch.full((n, 1), 3.0), torch.tensor([0.5]).log()).sample(torch.randn(n, 1))
    assert drawn.mean().item() == pytest.approx(3, abs=0.01)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.01)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), parts=st.lists(st.integers(0, 20), min_size=1, max_size=5))
def test_running_moments_are_those_of_all_rows(seed: int, parts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    rows = [rng.normal(5, 3, size=(n, 2)) for n in parts]
    moments = RunningMoments(2)
    for part in rows:
        moments.update(torch.tensor(part))
    everything = np.concatenate(rows)
    if len(everything):
        np.testing.assert_allclose(moments.mean, everything.mean(0), rtol=1e-10)
        np.testing.assert_allclose(moments.std(), np.sqrt(everything.var(0) + 1e-8), rtol=1e-10)
    else:
        assert moments.std().tolist() == [1, 1]


def test_normalizer_counts_live_rows_alone() -> None:
    normalizer = Normalizer(1)
    observation = torch.tensor([[[1.0]], [[1e6]], [[3.0]]])
    normalizer.observe(observation, torch.tensor([[True], [False], [True]]))
    torch.testing.assert_close(normalizer(torch.tensor([[2.0], [3.0], [1e9]])), torch.tensor([[0.0], [1.0], [10.0]]))


def test_reward_scale_is_the_deviation_of_the_discounted_return() -> None:
    rng = np.random.default_rng(0)
    steps, lanes, gamma = 50, 3, 0.9
    scale, returns, carry = RewardScale(gamma), [], np.zeros(lanes)
    for _ in range(2):  # the return goes on from one collection into the next
        reward, start = rng.normal(size=(steps, lanes)), rng.random((steps, lanes)) < 0.1
        mask = rng.random((steps, lanes)) < 0.9
        for t in range(steps):
            for lane in range(lanes):
                if mask[t, lane]:
                    carry[lane] = reward[t, lane] + (0 if start[t, lane] else gamma * carry[lane])
                    returns.append(carry[lane])
        columns = {"reward": torch.tensor(reward), "start": torch.tensor(start), "mask": torch.tensor(mask)}
        got = scale(Batch(**columns)).reward
        np.testing.assert_allclose(got, np.clip(reward / np.sqrt(np.var(returns) + 1e-8), -10, 10), rtol=1e-9)


def test_linear() -> None:
    assert [linear(2.0, 0.0, p) for p in (0, 0.25, 1, 2)] == [2, 1.5, 0, 0]


@pytest.mark.parametrize(
    ("space", "action", "wanted"),
    [
        (gym.spaces.Discrete(3, start=5), [2], 7),
        (gym.spaces.MultiDiscrete([2, 3]), [[1, 2]], [1, 2]),
        (gym.spaces.MultiDiscrete([[2, 3], [4, 5]]), [[1, 2, 3, 4]], [[1, 2], [3, 4]]),
        (gym.spaces.MultiBinary(3), [[1.0, 0.0, 1.0]], [1, 0, 1]),
        (gym.spaces.Box(-2, 2, (1,)), [[0.5]], [1.0]),
        (gym.spaces.Box(0, 10, (1,)), [[0.0]], [5.0]),
        (gym.spaces.Box(0, 10, (1,)), [[7.0]], [10.0]),
        (gym.spaces.Box(-np.inf, np.inf, (1,)), [[123.0]], [123.0]),
        (gym.spaces.Box(0, np.inf, (2,)), [[-3.0, 4.0]], [0.0, 4.0]),
        (gym.spaces.Box(np.array([-1, -np.inf]), np.array([3, 1]), dtype=np.float64), [[1.0, 5.0]], [3.0, 1.0]),
        (gym.spaces.Box(0, 255, (2,), np.uint8), [[0.0, 1.0]], [128, 255]),
    ],
)
def test_actions_reach_the_environment_in_its_own_units(space: gym.Space, action: list, wanted: object) -> None:
    got = head_for(space).to_env(np.array(action))  # type: ignore[operator]
    np.testing.assert_array_equal(got[0], wanted)
    assert space.contains(got[0])
