"""What objectives and estimators are in expectation, against the enumeration of all 4,096 strings (float64)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from proximo.advantages import decoupled_gae, gae
from proximo.batch import Batch
from proximo.groups import group_relative, leave_one_out
from proximo.objectives import Term, clip, dual_clip, score, surrogate
from proximo.preferences import bradley_terry, dpo, ipo
from proximo.reduce import action_mean, constant_length, over_time, sequence_mean
from proximo.reference import ESTIMATORS, Estimator, kl_ref, penalised, sequence_kl
from proximo.sequences import cispo, nll, sequence_clip, sequence_score
from tests.language.enumerable import (
    SYMBOLS,
    TOKENS,
    Opinion,
    Tabular,
    collected,
    divergence,
    every_string,
    logp_of_all,
    optimum,
    written,
)  # fmt: skip

STRINGS = every_string()
COUNT = STRINGS.shape[1]
PROMPT = torch.zeros(COUNT, dtype=torch.int64)
REWARD = torch.randn(COUNT, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def everything(policy: Tabular, reference: Tabular | None = None, score: Tensor = REWARD) -> Batch:
    return collected(policy, reference or Tabular(seed=9), STRINGS, PROMPT, score)


def weighed(batch: Batch, policy: Tabular, of_lane: Tensor) -> Batch:
    """With advantages whose mean over the lanes is the expectation over the policy's own strings."""
    advantage = of_lane * COUNT * logp_of_all(policy).detach().exp()
    return batch.replace(advantage=advantage.expand(TOKENS, COUNT))


def gradient(loss: Tensor, policy: Tabular) -> Tensor:
    return torch.autograd.grad(loss, policy.logits)[0]


def expected_reward(policy: Tabular) -> Tensor:
    return (logp_of_all(policy).exp() * REWARD).sum()


PER_TOKEN = 1 / TOKENS
OBJECTIVES: dict[str, tuple[Term, float]] = {
    "score": (score(), PER_TOKEN),
    "score, by sequence": (score(sequence_mean), PER_TOKEN),
    "surrogate": (surrogate(), PER_TOKEN),
    "clip": (clip(0.2, 0.28), PER_TOKEN),
    "clip, by sequence": (clip(0.2, reduce=sequence_mean), PER_TOKEN),
    "clip, constant length": (clip(0.2, reduce=constant_length(10)), 0.1),
    "dual clip": (dual_clip(0.2, 3.0), PER_TOKEN),
    "CISPO": (cispo(5.0), PER_TOKEN),
    "GSPO": (sequence_clip(3e-4, 4e-4), PER_TOKEN),
    "sequence ratio": (sequence_clip(0.2, mean=False), 1.0),
    "sequence score": (sequence_score(), 1.0),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_expected_gradient_at_ratio_one_is_that_of_the_expected_reward(name: str) -> None:
    policy, (term, weight) = Tabular(), OBJECTIVES[name]
    wanted = -weight * gradient(expected_reward(policy), policy)
    batch = weighed(everything(policy), policy, REWARD)
    got = gradient(term(policy.evaluate(batch), batch)[0], policy)
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


def test_nll_of_all_strings_is_the_cross_entropy() -> None:
    """Weighed by another's probabilities, its gradient is that of KL(other ‖ policy)."""
    policy, other = Tabular(), Tabular(seed=4)
    weight = logp_of_all(other).detach().exp()
    batch = everything(policy)
    loss = nll(lambda x, batch: (over_time(x, batch.mask) * weight).sum())(policy.evaluate(batch), batch)[0]
    wanted = -(weight * logp_of_all(policy)).sum()
    torch.testing.assert_close(loss, wanted, rtol=0, atol=1e-12)


def state_kl(policy: Tabular, reference: Tabular, reverse: bool) -> Tensor:
    """Σ_t E[KL in the state before token t], states as often as the policy visits them, which has no gradient."""
    batch = everything(policy)
    mine, theirs = (p.evaluate(batch).distribution for p in (policy, reference))
    kl = theirs.kl(mine) if reverse else mine.kl(theirs)
    return (kl.sum(0) * logp_of_all(policy).detach().exp()).sum()


def k_loss(estimator: Estimator, ratio: bool, policy: Tabular, reference: Tabular) -> Tensor:
    weight = logp_of_all(policy).detach().exp()
    batch = everything(policy, reference)
    term = kl_ref(estimator, ratio, lambda x, batch: (over_time(x, batch.mask) * weight).sum())
    return term(policy.evaluate(batch), batch)[0]


def test_bias_of_the_estimators_as_values() -> None:
    policy, reference = Tabular(), Tabular(seed=2)
    exact = divergence(policy, reference)
    k1, k2, k3 = (k_loss(name, False, policy, reference).item() for name in ESTIMATORS)
    assert exact > 0.5
    assert k1 == pytest.approx(exact, abs=1e-10)
    assert k3 == pytest.approx(exact, abs=1e-10)
    assert abs(k2 - exact) > 0.1


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
@pytest.mark.parametrize("ratio", [False, True])
def test_bias_of_the_estimators_as_losses(name: Estimator, ratio: bool) -> None:
    """The right gradient: k2, and k1 and k3 with the ratio. k1 alone has none; k3 alone has that of KL(ref ‖ π)."""
    policy, reference = Tabular(), Tabular(seed=2)
    got = gradient(k_loss(name, ratio, policy, reference), policy)
    right = gradient(state_kl(policy, reference, reverse=False), policy)
    if (name, ratio) in (("k2", False), ("k1", True), ("k3", True)):
        wanted = right
    elif name == "k1":
        wanted = torch.zeros_like(right)
    elif name == "k3":
        wanted = gradient(state_kl(policy, reference, reverse=True), policy)
    else:
        assert (got - right).abs().max() > 1e-2  # k2 is biased as a value, so a ratio does it no good
        return
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


def test_kl_in_the_reward_has_the_gradient_of_the_whole_sequences_kl() -> None:
    policy, reference = Tabular(), Tabular(seed=2)
    batch = penalised(everything(policy, reference), beta=0.3)
    scored = weighed(batch, policy, over_time(batch.reward, batch.mask))
    got = gradient(sequence_score()(policy.evaluate(scored), scored)[0], policy)
    mine, theirs = logp_of_all(policy), logp_of_all(reference).detach()
    wanted = gradient((mine.exp() * (0.3 * (mine - theirs) - REWARD)).sum(), policy)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


def test_at_the_optimum_kl_in_the_reward_is_at_rest_and_a_tokens_own_kl_is_not() -> None:
    """A term of the loss holds a token to account for its own KL alone, so that it rests elsewhere than at π*."""
    reference, beta = Tabular(seed=2), 0.5
    best = optimum(reference, REWARD, beta)
    batch = penalised(everything(best, reference), beta)
    inside = weighed(batch, best, over_time(batch.reward, batch.mask))
    assert gradient(sequence_score()(best.evaluate(inside), inside)[0], best).abs().max() < 1e-10
    outside = weighed(batch, best, REWARD)
    term = sequence_score()(best.evaluate(outside), outside)[0] + beta * k_loss("k2", False, best, reference)
    assert gradient(term, best).abs().max() > 1e-3


def exact_values(policy: Tabular, gamma: float, batch: Batch) -> Tensor:
    """V before each token of every string, [TOKENS + 1, 4096]: what is to come, discounted, by enumeration."""
    p = policy.evaluate(batch).logp.detach().exp()
    value, v = [torch.zeros(COUNT, dtype=torch.float64)], torch.zeros(COUNT, dtype=torch.float64)
    for t in reversed(range(TOKENS)):
        taken = (p[t] * (batch.reward[t] + gamma * v)).view(-1, SYMBOLS, SYMBOLS ** (TOKENS - 1 - t))
        v = taken.sum(1, keepdim=True).expand_as(taken).reshape(-1)
        value.append(v)
    return torch.stack(value[::-1])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.5), (0.97, 0.0)])
def test_gae_with_exact_values_gives_exact_advantages(gamma: float, lam: float) -> None:
    """Of each prefix and token: the mean over what may follow is Q − V; for λ = 0 each one is."""
    policy = Tabular()
    batch = penalised(everything(policy), beta=0.2)
    value = exact_values(policy, gamma, batch)
    batch = gae(batch.replace(value=value[:-1], next_value=value[1:]), gamma, lam)
    exact = batch.reward + gamma * value[1:] - value[:-1]
    if lam == 0:
        torch.testing.assert_close(batch.advantage, exact, rtol=0, atol=1e-12)
    p = policy.evaluate(batch).logp.detach()
    for t in range(TOKENS):
        after = p[t + 1 :].sum(0).exp()  # how likely the rest of the string is
        mean = (after * batch.advantage[t]).view(SYMBOLS ** (t + 1), -1).sum(1)
        torch.testing.assert_close(mean, exact[t].view(SYMBOLS ** (t + 1), -1)[:, 0], rtol=0, atol=1e-10)


def test_decoupled_gae_takes_each_from_its_own_lambda() -> None:
    batch = penalised(everything(Tabular()), beta=0.2)
    both = decoupled_gae(batch, 1.0, 0.9, 1.0)
    assert torch.equal(both.advantage, gae(batch, 1.0, 0.9).advantage)
    assert torch.equal(both.returns, gae(batch, 1.0, 1.0).returns)
    per_lane = torch.linspace(0, 1, COUNT, dtype=torch.float64)
    mixed = gae(batch, 1.0, per_lane).advantage
    torch.testing.assert_close(mixed[:, 0], gae(batch, 1.0, 0.0).advantage[:, 0])
    torch.testing.assert_close(mixed[:, -1], gae(batch, 1.0, 1.0).advantage[:, -1])


@pytest.mark.parametrize(("estimate", "scale"), [(leave_one_out, 1.0), (lambda b: group_relative(b, std=False), 0.5)])
def test_leave_one_out_is_unbiased_and_a_groups_mean_shrinks_by_its_size(
    estimate: Callable[[Batch], Batch], scale: float
) -> None:
    """All groups of two of the strings' first 64, with their probabilities: the expected gradient."""
    policy, few = Tabular(), 64
    p = logp_of_all(policy)[:few].log_softmax(0)
    first, second = torch.arange(few).repeat_interleave(few), torch.arange(few).repeat(few)
    lanes = torch.stack([first, second], 1).reshape(-1)
    prompt = torch.zeros(len(lanes), dtype=torch.int64)
    batch = collected(policy, policy, STRINGS[:, lanes], prompt, REWARD[lanes])
    batch = estimate(batch.replace(group=torch.arange(len(first)).repeat_interleave(2).expand(TOKENS, -1)))
    likely = (p[first] + p[second]).detach().exp().repeat_interleave(2) / 2
    got, wanted = (likely * batch.advantage[0] * p[lanes]).sum(), scale * (p.exp() * REWARD[:few]).sum()
    got, wanted = (torch.autograd.grad(x, policy.logits, retain_graph=True)[0] for x in (got, wanted))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


def test_the_optimum_is_one() -> None:
    """At π* the log-ratio to the reference and the reward differ by a constant."""
    reference = Tabular(seed=2)
    best = optimum(reference, REWARD, 0.5)
    rest = (logp_of_all(best) - logp_of_all(reference) - REWARD / 0.5).detach()
    assert (rest - rest.mean()).abs().max() < 1e-10


def pairs(policy: Tabular, reference: Tabular, left: Tensor, right: Tensor) -> Batch:
    action = torch.stack([STRINGS[:, left], STRINGS[:, right]], -1)
    batch = written(action, torch.zeros_like(action[0]))
    return batch.replace(ref_logp=reference.evaluate(batch).logp.detach())


def test_dpo_is_at_rest_at_the_optimum_of_the_reward_that_preferences_come_from() -> None:
    """And nowhere else: π* is the policy under which each pair is preferred as often as the reward says."""
    reference, beta = Tabular(seed=2), 0.5
    left, right = torch.randint(COUNT, (2, 6), generator=torch.Generator().manual_seed(0))
    for policy, still in ((optimum(reference, REWARD, beta), True), (Tabular(), False)):
        found = torch.zeros_like(policy.logits)
        for a, b in zip(left.split(1), right.split(1), strict=True):
            preferred = torch.sigmoid(REWARD[a] - REWARD[b])
            for one, other, often in ((a, b, preferred), (b, a, 1 - preferred)):
                batch = pairs(policy, reference, one, other)
                found += often * gradient(dpo(beta)(policy.evaluate(batch), batch)[0], policy)
        assert (found.abs().max().item() < 1e-10) is still


def test_preferences_by_hand() -> None:
    policy, reference = Tabular(), Tabular(seed=2)
    left, right = torch.tensor([5, 70]), torch.tensor([4000, 9])
    batch = pairs(policy, reference, left, right)
    h = [logp_of_all(p).detach() for p in (policy, reference)]
    h = (h[0] - h[1])[left] - (h[0] - h[1])[right]
    opinion = policy.evaluate(batch)
    loss, seen = dpo(0.1)(opinion, batch)
    assert loss.item() == pytest.approx((1 + (-0.1 * h).exp()).log().mean().item(), abs=1e-12)
    assert seen["margin"].item() == pytest.approx(0.1 * h.mean().item(), abs=1e-12)
    assert seen["accuracy"].item() == (h > 0).double().mean().item()
    assert ipo(0.1)(opinion, batch)[0].item() == pytest.approx((h - 5).square().mean().item(), abs=1e-10)


def test_bradley_terry_takes_the_last_live_row_of_each_side() -> None:
    policy = Tabular()
    mask = torch.tensor([[[1, 1]], [[1, 1]], [[0, 1]], [[0, 0]]], dtype=torch.bool)
    value = torch.full((4, 1, 2), 99.0, dtype=torch.float64)
    value[1, 0, 0], value[2, 0, 1] = 2.0, 0.5
    batch = Batch(mask=mask, margin=torch.full((4, 1), 0.25, dtype=torch.float64))
    opinion = Opinion(value, value, policy.distribution(STRINGS[:, :1])[0], value)
    loss, seen = bradley_terry(centering=0.01)(opinion, batch)
    wanted = torch.log1p(torch.exp(torch.tensor(-1.25, dtype=torch.float64))) + 0.01 * 2.5**2
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-12)
    assert (seen["margin"], seen["accuracy"], seen["centre"]) == (1.5, 1.0, 1.25)


def test_pairs_without_a_side_count_nowhere() -> None:
    """As may be, where pairs fill up a batch: the loss is that of the others."""
    policy, reference = Tabular(), Tabular(seed=2)
    batch = pairs(policy, reference, torch.tensor([5, 70, 8]), torch.tensor([4000, 9, 7]))
    mask = batch.mask.clone()
    mask[:, 1, 1] = False
    batch, others = batch.replace(mask=mask), batch.part(torch.tensor([0, 2]))
    for term in (dpo(0.1), ipo(0.1), bradley_terry(0.01)):
        wanted = term(policy.evaluate(others), others)
        torch.testing.assert_close(term(policy.evaluate(batch), batch), wanted, rtol=0, atol=1e-12)


def test_sequence_kl_is_exact_if_sampled_and_weighed_with_one_temperature() -> None:
    """Trap 10: strings of a colder sampler than the log-probabilities know give any number, a negative one too."""
    base, reference = Tabular(scale=0.5), Tabular(scale=1.0)  # the same table, the reference more sure of it
    reference.logits.data.copy_(2 * base.logits.data)

    def measured(sampler: Tabular, policy: Tabular) -> float:
        often = COUNT * logp_of_all(sampler).detach().exp()
        batch = everything(policy, reference)
        apart = torch.where(batch.mask, (batch.logp - batch.ref_logp) * often, 0)
        return sequence_kl(batch.replace(logp=apart, ref_logp=torch.zeros_like(apart))).item()

    cold = Tabular(scale=0.5, temperature=0.2)
    cold.logits.data.copy_(base.logits.data)
    exact = divergence(base, reference)
    assert measured(base, base) == pytest.approx(exact, abs=1e-10)
    assert exact > 0
    assert measured(cold, base) < 0
    assert measured(cold, cold) == pytest.approx(divergence(cold, reference), abs=1e-10)


def test_action_mean_weighs_tokens_and_sequence_mean_sequences() -> None:
    x = torch.tensor([[1.0, 10.0], [3.0, torch.nan]])
    batch = Batch(mask=torch.tensor([[True, True], [True, False]]))
    assert action_mean(x, batch).item() == pytest.approx(14 / 3)
    assert sequence_mean(x, batch).item() == pytest.approx((2 + 10) / 2)
    assert constant_length(4)(x, batch).item() == pytest.approx((4 / 4 + 10 / 4) / 2)
