"""Rings one and two of what PPO's relatives are made of: their Terms, rules and optimizers, by hand and by identity."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor, nn

from proximo.advantages import monte_carlo
from proximo.algorithms.adaptive_clip import AdaptiveClipConfig
from proximo.algorithms.adaptive_lr import AdaptiveLR, AdaptiveLRConfig
from proximo.algorithms.config import Proximal
from proximo.algorithms.dual_clip import DualClipConfig
from proximo.algorithms.on_policy import BOUNDS
from proximo.algorithms.penalty import Penalty, PenaltyConfig
from proximo.algorithms.ppo import PPO, PPOConfig
from proximo.batch import Batch
from proximo.coefficients import Coefficient, steered
from proximo.drift import kl
from proximo.errors import ConfigError
from proximo.models.actor_critic import ActorCritic
from proximo.models.distributions import Categorical
from proximo.models.network import Network
from proximo.objectives import Term, clip, dual_clip, fisher_rao, score, surrogate, value_error
from proximo.policy import Evaluation
from proximo.run.config import from_json, resolved
from proximo.updaters.adam import Adam
from proximo.updaters.optimizer import Optimizer
from proximo.updaters.rmsprop import RMSProp
from proximo.updaters.sgd import sgd
from tests.test_identities import SPACES, gradient, policy_for, random_batch
from tests.toys import remembered

THREE = Categorical(torch.zeros(1, 3))


def one_action(term: Term, ratio: float, advantage: float, old: float = 0.25, **columns: Tensor) -> tuple[float, float]:
    """A Term's loss of one action, and its derivative by the ratio."""
    was = torch.tensor([old], dtype=torch.float64).log()
    r = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    logp = was + r.log()
    batch = Batch(logp=was, advantage=torch.tensor([advantage]).double(), mask=torch.tensor([True]), **columns)
    loss, _ = term(Evaluation(logp, torch.zeros(1), THREE), batch)
    return loss.item(), torch.autograd.grad(loss, r)[0].item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.25, 2.0, -2.5, -2.0),  # within 1 + high, outside 1 + ε
        (1.5, 2.0, -2.6, 0.0),
        (0.85, -2.0, 1.8, 0.0),  # below 1 − ε
        (0.95, -2.0, 1.9, 2.0),
        (0.5, 2.0, -1.0, -2.0),  # what makes it worse is never cut
        (1.5, -2.0, 3.0, 2.0),
    ],
)
def test_clip_with_two_ends_by_hand(ratio: float, advantage: float, loss: float, slope: float) -> None:
    assert one_action(clip(0.1, 0.3), ratio, advantage) == pytest.approx((loss, slope))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (2.9, -2.0, 5.8, 2.0),
        (3.5, -2.0, 6.0, 0.0),  # c |A|, and no gradient
        (1e6, -2.0, 6.0, 0.0),
        (0.5, -2.0, 1.6, 0.0),
        (1.5, 2.0, -2.4, 0.0),
        (3.5, 2.0, -2.4, 0.0),
        (1.1, 2.0, -2.2, -2.0),
    ],
)
def test_dual_clip_by_hand(ratio: float, advantage: float, loss: float, slope: float) -> None:
    assert one_action(dual_clip(0.2, 3.0), ratio, advantage) == pytest.approx((loss, slope))


@pytest.mark.parametrize(("value", "loss", "slope"), [(1.4, 0.18, -0.6), (1.9, 0.125, 0.0), (0.6, 0.98, -1.4)])
def test_value_clip_by_hand(value: float, loss: float, slope: float) -> None:
    """The old value is 1, the return 2, and 0.5 is as far as the value may go: ½ (1.5 − 2)² is the least loss."""
    v = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    got, _ = value_error(0.5)(Evaluation(one, v, THREE), Batch(value=one, returns=2 * one, mask=one > 0))
    assert (got.item(), torch.autograd.grad(got, v)[0].item()) == pytest.approx((loss, slope))


@pytest.mark.parametrize("make", [clip, lambda e: clip(0.1, e), lambda e: clip(e, 0.1), lambda e: dual_clip(e, 3.0)])
def test_a_coefficient_may_stand_for_any_epsilon(make: Any) -> None:
    epsilon = Coefficient("epsilon", 0.5)
    for value, ratio, advantage in itertools.product((0.05, 0.3), (0.4, 0.92, 1.08, 4.0), (-1.0, 1.0)):
        epsilon.value = value
        column = epsilon.on(Batch(mask=torch.tensor([True]))).epsilon
        with_column = one_action(make(epsilon), ratio, advantage, epsilon=column)
        assert with_column == pytest.approx(one_action(make(value), ratio, advantage), rel=1e-6)


def test_a_coefficient_may_clip_the_value() -> None:
    most = Coefficient("most", 0.5)
    one = torch.ones(1, dtype=torch.float64)
    batch = most.on(Batch(value=one, returns=2 * one, mask=one > 0))
    opinion = Evaluation(one, 1.9 * one, THREE)
    assert value_error(most)(opinion, batch)[0] == value_error(0.5)(opinion, batch)[0] == 0.125


@pytest.mark.parametrize("space", SPACES, ids=lambda s: type(s).__name__)
def test_at_ratio_one_every_policy_loss_has_the_gradient_of_the_score(space: gym.Space) -> None:
    policy = policy_for(space)
    batch = random_batch(policy)
    wanted = gradient(score()(policy.evaluate(batch), batch)[0], policy)
    assert wanted.norm() > 1e-3
    for term in (surrogate(), clip(0.2), clip(0.1, 0.3), dual_clip(0.2, 3.0), surrogate() + 10 * fisher_rao()):
        got = gradient(term(policy.evaluate(batch), batch)[0], policy)
        torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-9)


def test_the_fisher_rao_term_is_half_the_squared_distance_of_the_densities() -> None:
    """E[½ (r − 1)² π_old] over all actions is ½ Σ (π − π_old)², an eighth of FR² = 4 Σ (√π² − √π_old²)²."""
    torch.manual_seed(0)
    old, new = torch.randn(2, 4, dtype=torch.float64).log_softmax(-1)
    each = torch.stack([_fisher_rao_of(new[a], old[a]) for a in range(4)])
    expected = (old.exp() * each).sum()
    torch.testing.assert_close(expected, 0.5 * (new.exp() - old.exp()).square().sum())
    distance = 4 * (new.exp().square().sqrt() - old.exp().square().sqrt()).square().sum()
    torch.testing.assert_close(expected, distance / 8)


def _fisher_rao_of(new: Tensor, old: Tensor) -> Tensor:
    batch = Batch(logp=old.reshape(1), mask=torch.tensor([True]))
    return fisher_rao()(Evaluation(new.reshape(1), new, THREE), batch)[0]


def test_a_far_dead_row_reaches_no_loss() -> None:
    policy = policy_for(SPACES[0])
    batch = random_batch(policy)
    dead = batch.replace(logp=torch.where(batch.mask, batch.logp, -1e9), value=batch.returns)
    assert not batch.mask.all()
    for term in (score(), surrogate(), dual_clip(0.2, 3.0), fisher_rao(), value_error(0.1)):
        wanted = gradient(term(policy.evaluate(batch), batch.replace(value=batch.returns))[0], policy)
        torch.testing.assert_close(gradient(term(policy.evaluate(dead), dead)[0], policy), wanted)


# --- REINFORCE on a bandit: three arms, one state, whose gradient is known by enumeration


ARMS = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)


def bandit(action: Tensor, value: float) -> Batch:
    """One-step episodes [1, N] that paid what their arms pay."""
    shape = (1, len(action))
    yes, no = torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    columns: dict[str, Any] = dict(observation=torch.zeros(*shape, 5).double(), action=action.view(shape))
    columns |= dict(reward=ARMS[action].view(shape), value=torch.full(shape, value).double(), mask=yes)
    return Batch(**columns, next_value=torch.full(shape, 9.0).double(), terminated=yes, truncated=no)


def reinforce_gradient(policy: ActorCritic, action: Tensor, baseline: bool, value: float = 0.7) -> Tensor:
    batch = monte_carlo(bandit(action, value), 0.9, baseline)
    return gradient(score()(policy.evaluate(batch), batch)[0], policy)


@pytest.mark.parametrize("baseline", [True, False])
def test_the_gradient_of_reinforce_is_unbiased(baseline: bool) -> None:
    policy = policy_for(gym.spaces.Discrete(3))
    with torch.no_grad():
        policy.actor[-1].bias.copy_(torch.tensor([0.3, -0.2, 0.5]))
    logits = policy.evaluate(bandit(torch.arange(3), 0.0)).distribution.logp_all[0, 0]
    exact = gradient(-(logits.exp() * ARMS).sum(), policy)
    p = logits.detach().exp()
    assert exact.norm() > 0.1

    each = torch.stack([reinforce_gradient(policy, torch.tensor([a]), baseline) for a in range(3)])
    torch.testing.assert_close((p[:, None] * each).sum(0), exact, rtol=1e-10, atol=1e-12)

    torch.manual_seed(0)
    n = 20_000
    drawn = torch.multinomial(p, n, replacement=True)
    sampled = reinforce_gradient(policy, drawn, baseline)
    deviation = ((p[:, None] * each.square()).sum(0) - exact.square()).clamp(min=0).sqrt()
    assert ((sampled - exact).abs() <= 6 * deviation / n**0.5 + 1e-12).all()
    assert (sampled - exact).norm() > 1e-6, "it was drawn, not enumerated"


def test_a_baseline_leaves_less_noise() -> None:
    policy = policy_for(gym.spaces.Discrete(3))
    spread = []
    for value in (0.0, 0.8):
        each = torch.stack([reinforce_gradient(policy, torch.tensor([a]), True, value) for a in range(3)])
        spread.append(each.var(0).sum().item())
    assert spread[1] < 0.8 * spread[0]


# --- rules


def test_the_rule_of_beta() -> None:
    def rule(beta: float, reached: float) -> float:
        return steered(beta, reached, 0.01, band=1.5, factor=2, least=2**-20, most=2**20)

    assert [rule(1.0, d) for d in (0.0151, 0.0149, 0.01, 0.0067, 0.0066, 0.0)] == [2, 1, 1, 1, 0.5, 0.5]
    assert (rule(2.0**20, 1.0), rule(2.0**-20, 0.0)) == (2**20, 2**-20)


def test_the_rule_of_the_learning_rate() -> None:
    def rule(lr: float, reached: float) -> float:
        return steered(lr, reached, 0.01, band=2, factor=1 / 1.5, least=1e-5, most=1e-2)

    assert [rule(3e-3, d) for d in (0.021, 0.019, 0.006, 0.004)] == pytest.approx([2e-3, 3e-3, 3e-3, 4.5e-3])
    assert (rule(9e-3, 0.0), rule(1.1e-5, 1.0)) == (1e-2, 1e-5)


# --- optimizers


class Pair(nn.Module):
    """Two parameters, and a loss with a gradient that is known to nobody."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Parameter(torch.randn(3, 2).double()), nn.Parameter(torch.randn(4).double())

    def loss(self) -> Tensor:
        return (self.a.sin().sum() * self.b.square().sum()).cos() + self.b.sum().square()


@pytest.mark.parametrize(
    ("ours", "theirs", "numbers"),
    [
        (RMSProp, torch.optim.RMSprop, dict(alpha=0.9, eps=1e-5)),
        (Adam, torch.optim.Adam, dict(eps=1e-5)),
        (Adam, torch.optim.Adam, dict(eps=1e-5, betas=(0.99, 0.99))),
        (Adam, torch.optim.Adam, dict(eps=1e-5, betas=(0.0, 0.5))),
    ],
)
def test_optimizers_agree_with_torch(ours: Any, theirs: Any, numbers: dict[str, Any]) -> None:
    mine, other = Pair(), Pair()
    start = mine.a.detach().clone()
    optimizer: Optimizer = ours(mine, lr=1e-2, **numbers)
    reference = theirs(other.parameters(), lr=1e-2, **numbers)
    for step in range(20):
        optimizer.lr = reference.param_groups[0]["lr"] = 1e-2 / (1 + step)
        reference.zero_grad()
        other.loss().backward()
        reference.step()
        gradients = torch.autograd.grad(mine.loss(), list(mine.parameters()))
        with torch.no_grad():
            optimizer.descend(torch.cat([g.reshape(-1) for g in gradients]), optimizer.state)
    assert (mine.a - start).abs().max() > 1e-3
    for name in ("a", "b"):
        torch.testing.assert_close(getattr(mine, name), getattr(other, name), rtol=1e-10, atol=1e-12)


def test_what_rmsprop_remembers_has_the_parameters_names() -> None:
    optimizer = RMSProp(Pair())
    assert {name: list(x.shape) for name, x in optimizer.state_tensors().items()} == {
        "lr": [], "a.square_avg": [3, 2], "b.square_avg": [4],
    }  # fmt: skip


# --- the KL of a whole batch, and what it leads


def collected(policy: ActorCritic, steps: int = 16, lanes: int = 4) -> Batch:
    """A random collection as a source would give it, its last rows dead."""
    torch.manual_seed(3)
    observation = torch.randn(steps, lanes, 5)
    mask = torch.ones(steps, lanes, dtype=torch.bool)
    mask[-2:, 0] = False
    no = torch.zeros_like(mask)
    batch = Batch(observation=observation, action=policy.act(observation, policy.noise(steps, lanes))[0], mask=mask)
    with torch.no_grad():
        opinion = policy.evaluate(batch)
    batch = batch.replace(logp=opinion.logp, value=opinion.value, reward=torch.randn(steps, lanes), start=no)
    return remembered(policy, batch.replace(next_value=opinion.value, terminated=no, truncated=no))


def fresh() -> ActorCritic:
    torch.manual_seed(1)
    return ActorCritic(gym.spaces.Box(-1, 1, (5,)), gym.spaces.Box(-1, 1, (2,)), Network(hidden=(16,)))


@pytest.mark.parametrize("space", SPACES, ids=lambda s: type(s).__name__)
def test_what_is_remembered_stays_when_the_policy_moves(space: gym.Space) -> None:
    policy = policy_for(space)
    batch = remembered(policy, random_batch(policy))
    before = batch.map(torch.clone).leaves()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    for tensor, old in zip(batch.leaves(), before, strict=True):
        assert torch.equal(tensor, old)
    assert batch.old.kl(policy.evaluate(batch).distribution).min() > 0


def test_the_kl_of_a_batch_is_the_mean_over_its_live_rows() -> None:
    policy = fresh()
    batch = collected(policy)
    assert kl(policy, batch).item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
        each = batch.old.kl(policy.evaluate(batch).distribution)
    assert kl(policy, batch).item() == pytest.approx(each[batch.mask].mean().item(), rel=1e-5)
    far = batch.replace(observation=torch.where(batch.mask[..., None], batch.observation, 50.0))
    assert kl(policy, far).item() == pytest.approx(kl(policy, batch).item(), rel=1e-6)
    assert not kl(policy, batch).requires_grad


@pytest.mark.parametrize(("target", "passes"), [(1e-9, 1), (1e9, 6)])
def test_early_stop_really_stops(target: float, passes: int) -> None:
    policy = fresh()
    algorithm = PPO(policy, PPOConfig(epochs=6, minibatches=2, target_kl=target))
    report = algorithm.step(collected(policy), 0.0)
    power = algorithm.optimizer.state["power1"].item()
    assert power == pytest.approx(0.9 ** (2 * passes)), "so many gradient steps"
    assert report["passes"] == passes


def test_early_stop_ends_after_the_first_pass_that_goes_too_far() -> None:
    reached = []
    for epochs in range(1, 6):
        policy = fresh()
        algorithm = PPO(policy, PPOConfig(epochs=epochs, minibatches=2, lr=3e-3, anneal_lr=False, target_kl=1e9))
        torch.manual_seed(0)
        reached.append(float(algorithm.step(collected(policy), 0.0)["kl_after"]))
    target = (reached[1] + reached[2]) / 2
    assert max(reached[:2]) < target < reached[2], reached
    policy = fresh()
    algorithm = PPO(policy, PPOConfig(epochs=5, minibatches=2, lr=3e-3, anneal_lr=False, target_kl=target))
    report = algorithm.step(collected(policy), 0.0)
    assert report["passes"] == 3
    assert report["kl_after"] > target


def test_a_clip_that_falls_is_halfway_through_the_run_half_of_itself() -> None:
    ends = []
    for numbers in (dict(clip=0.2, anneal_clip=True), dict(clip=0.1), dict(clip=0.2)):
        policy = fresh()
        algorithm = PPO(policy, PPOConfig(lr=1e-2, anneal_lr=False, **numbers))  # type: ignore[arg-type]
        first, vector = collected(policy), algorithm.optimizer.state["vector"]
        before = {name: x.clone() for name, x in algorithm.optimizer.state.items()}
        algorithm.step(first, 0.0)
        algorithm.optimizer.restore(before)
        torch.manual_seed(0)
        algorithm.step(first, 0.5)
        ends.append(vector.clone())
    falling, half, whole = ends
    torch.testing.assert_close(falling, half, rtol=1e-5, atol=1e-6)
    assert (falling - whole).abs().max() > 1e-3


def test_without_a_target_the_update_is_what_it_was() -> None:
    ends = []
    for target in (None, 1e9):
        policy = fresh()
        algorithm = PPO(policy, PPOConfig(target_kl=target))
        batch = collected(policy)
        torch.manual_seed(7)
        report = algorithm.step(batch, 0.0)
        ends.append(algorithm.optimizer.state["vector"].clone())
        assert ("passes" in report) == (target is not None)
    assert torch.equal(*ends)


def test_a_failed_pass_undoes_those_before_it() -> None:
    policy = fresh()
    optimizer, batch = Adam(policy, lr=1e-2), collected(policy)
    batch = batch.replace(advantage=batch.reward, returns=batch.reward)
    before = optimizer.state["vector"].clone()

    def breaks() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sgd(policy, optimizer, clip(0.2), batch, 2, 2, 0.5, enough=breaks)
    assert torch.equal(optimizer.state["vector"], before)


def test_beta_follows_the_kl_that_updates_reach() -> None:
    policy = fresh()
    algorithm = Penalty(policy, PenaltyConfig(lr=1e-4, target_kl=1.0, backtrack_above=1e9))
    betas = [float(algorithm.step(collected(policy), 0.0)["beta"]) for _ in range(3)]
    assert betas == [1, 0.5, 0.25]
    assert algorithm.state_tensors()["beta.beta"].item() == 0.125
    algorithm = Penalty(policy, PenaltyConfig(lr=1e-2, target_kl=1e-5, backtrack_above=1e9))
    assert [float(algorithm.step(collected(policy), 0.0)["beta"]) for _ in range(3)] == [1, 2, 4]


@pytest.mark.parametrize("bound", [1e-3, 1e-4, 1e-14])
def test_an_update_that_goes_too_far_is_taken_back(bound: float) -> None:
    """Along its own path: what is left of it points where the whole update went, or nothing is left."""
    ends = []
    for backtrack_above in (1e12, 1.0):
        policy = fresh()
        algorithm = Penalty(policy, PenaltyConfig(lr=3e-2, target_kl=bound, backtrack_above=backtrack_above))
        before, batch = algorithm.optimizer.state["vector"].clone(), collected(policy)
        torch.manual_seed(0)
        reached = algorithm.step(batch, 0.0)["kl_after"]
        ends.append((algorithm.optimizer.state["vector"] - before, float(reached)))
        measured = kl(policy, batch).item()
        assert measured == pytest.approx(float(reached), abs=1e-6)
    (whole, far), (part, near) = ends
    assert near <= bound < far
    if near == 0:
        assert not part.any()
    else:
        share = (part.norm() / whole.norm()).item()
        torch.testing.assert_close(part, share * whole, rtol=1e-3, atol=1e-6)
        assert 0 < share < 1
        assert near > bound / 8 or bound < 1e-6  # a step goes back to half of it at most, where KL is a quarter


def test_the_learning_rate_follows_the_kl_after_each_pass() -> None:
    policy = fresh()
    quiet = AdaptiveLRConfig(lr=1e-5, target_kl=1.0, epochs=3)
    assert AdaptiveLR(policy, quiet).step(collected(policy), 0.0)["lr"] == pytest.approx(1e-5 * 1.5**3)
    loud = AdaptiveLRConfig(lr=1e-2, target_kl=1e-7, epochs=3)
    assert AdaptiveLR(policy, loud).step(collected(policy), 0.0)["lr"] == pytest.approx(1e-2 / 1.5**3)


# --- configs


@pytest.mark.parametrize("name", ["clip_high", "value_clip", "target_kl"])
def test_what_may_be_left_out_is_checked_where_it_is_given(name: str) -> None:
    assert getattr(PPOConfig(), name) is None
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match=name):
            PPOConfig(**{name: bad})


def test_a_run_from_before_a_field_existed_is_read_as_without_it() -> None:
    tree = resolved("CartPole-v1", "ppo", "cartpole", dict(lr=0.5)).to_json()
    newer = ("clip_high", "value_clip", "target_kl")
    older = {**tree, "algorithm": {k: v for k, v in sorted(tree["algorithm"].items()) if k not in newer}}
    assert from_json(older) == from_json(tree)


def test_a_whole_number_may_stand_for_an_optional_one() -> None:
    target = resolved("CartPole-v1", "ppo", "cartpole", dict(target_kl=1)).algorithm.target_kl
    assert (target, type(target)) == (1.0, float)


def test_every_shared_number_is_checked() -> None:
    shared = {field.name for field in dataclasses.fields(Proximal) if field.type != "bool"}
    assert shared == {name for names in BOUNDS.values() for name in names}


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        (DualClipConfig, dict(dual_clip=1.0)),
        (AdaptiveLRConfig, dict(lr=0.1)),
        (AdaptiveLRConfig, dict(lr_min=1e-2, lr_max=1e-3)),
        (AdaptiveClipConfig, dict(clip=0.6)),
        (AdaptiveClipConfig, dict(clip_min=0.3)),
    ],
)
def test_bounds_that_contradict_are_refused(config: Any, numbers: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"must (be greater than 1|be within|lie within)"):
        config(**numbers)
