"""What each algorithm minimises, row by row from its paper's formula; and that its own rule is the one it follows."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal, kl_divergence

from proximo.advantages import gae
from proximo.algorithms import ALGORITHMS
from proximo.algorithms.adaptive_clip import AdaptiveClip, AdaptiveClipConfig
from proximo.algorithms.recompute import RecomputePPO
from proximo.batch import Batch
from proximo.coefficients import Coefficient
from proximo.models.actor_critic import ActorCritic
from tests.test_identities import gradient, policy_for, random_batch
from tests.test_variants import collected, fresh
from tests.toys import remembered

Formula = Callable[[Any], Tensor]
SPACES = (gym.spaces.Discrete(4), gym.spaces.Box(-1, 1, (2,)))
WEIGHTS: dict[str, Any] = dict(value_coef=0.7, entropy_coef=0.3)
POLICY_ALONE = ("natural", "trpo", "trpo_reuse")  # their value is fitted apart, and entropy is only told


def clipped(s: Any, low: float, high: float) -> Tensor:
    return -torch.minimum(s.ratio * s.advantage, s.ratio.clamp(1 - low, 1 + high) * s.advantage)


def dual(s: Any, epsilon: float, bound: float) -> Tensor:
    loss = clipped(s, epsilon, epsilon)
    return torch.where(s.advantage < 0, loss.clamp(max=bound * s.advantage.abs()), loss)


def surrogate(s: Any) -> Tensor:
    return -s.ratio * s.advantage


def score(s: Any) -> Tensor:
    return -s.logp * s.advantage


CASES: list[tuple[str, dict[str, Any], Formula]] = [
    ("ppo", dict(clip=0.1), lambda s: clipped(s, 0.1, 0.1)),
    ("ppo", dict(clip=0.1, clip_high=0.4), lambda s: clipped(s, 0.1, 0.4)),
    ("ppo", dict(clip=0.3, value_clip=0.05), lambda s: clipped(s, 0.3, 0.3)),
    ("ppo", dict(clip=0.05, anneal_clip=True), lambda s: clipped(s, 0.05, 0.05)),
    ("recompute", dict(clip=0.1), lambda s: clipped(s, 0.1, 0.1)),
    ("reuse", dict(clip=0.3), lambda s: clipped(s, 0.3, 0.3)),
    ("adaptive_lr", dict(clip=0.1), lambda s: clipped(s, 0.1, 0.1)),
    ("adaptive_clip", dict(clip=0.1), lambda s: clipped(s, 0.1, 0.1)),
    ("dual_clip", dict(clip=0.1, dual_clip=1.2), lambda s: dual(s, 0.1, 1.2)),
    ("dual_clip", dict(clip=0.3, dual_clip=1.5), lambda s: dual(s, 0.3, 1.5)),
    ("penalty", dict(beta=0.5), lambda s: surrogate(s) + 0.5 * s.kl),
    ("penalty", dict(beta=8.0), lambda s: surrogate(s) + 8.0 * s.kl),
    ("fixed_kl", dict(beta=0.5), lambda s: surrogate(s) + 0.5 * s.kl),
    ("fixed_kl", dict(beta=8.0), lambda s: surrogate(s) + 8.0 * s.kl),
    ("fisher_rao", dict(tau=0.1), lambda s: surrogate(s) + (s.ratio - 1) ** 2 * s.old_logp.exp() / 2 / 0.1),
    ("fisher_rao", dict(tau=0.01), lambda s: surrogate(s) + (s.ratio - 1) ** 2 * s.old_logp.exp() / 2 / 0.01),
    ("unconstrained", {}, surrogate),
    ("natural", {}, surrogate),
    ("trpo", {}, surrogate),
    ("trpo_reuse", {}, surrogate),
    ("a2c", {}, score),
    ("reinforce", {}, score),
]


def test_every_algorithm_is_among_them() -> None:
    assert {name for name, _, _ in CASES} == ALGORITHMS.keys()


def torchs(distribution: Any) -> Distribution:
    """The same distribution, by torch."""
    if hasattr(distribution, "logp_all"):
        return Categorical(logits=distribution.logp_all)
    return Independent(Normal(distribution.mean, distribution.log_std.exp()), 1)


def moved(space: gym.Space) -> tuple[ActorCritic, Batch]:
    """A policy that went some way from the one that collected, with every number an objective may look at."""
    policy = policy_for(space)
    batch = remembered(policy, random_batch(policy, rows=256))
    batch = batch.replace(value=policy.evaluate(batch).value.detach())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    ratio = (policy.evaluate(batch).logp - batch.logp).exp()[batch.mask]
    assert ratio.min() < 0.6, "else no clip would show"
    assert ratio.max() > 1.6
    return policy, batch


@pytest.mark.parametrize("space", SPACES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("name", "numbers", "formula"), CASES, ids=[f"{n}-{numbers}" for n, numbers, _ in CASES])
def test_the_objective_is_the_papers(name: str, numbers: dict[str, Any], formula: Formula, space: gym.Space) -> None:
    policy, batch = moved(space)
    algorithm: Any = ALGORITHMS[name]
    asked = numbers if name in POLICY_ALONE else WEIGHTS | numbers
    learner = algorithm(policy, algorithm.Config(**asked))
    for part in vars(learner).values():
        batch = part.on(batch) if isinstance(part, Coefficient) else batch

    opinion, live = policy.evaluate(batch), batch.mask
    new, old = torchs(opinion.distribution), torchs(batch.old)
    rows = SimpleNamespace(
        logp=new.log_prob(batch.action)[live],
        old_logp=old.log_prob(batch.action)[live],
        advantage=batch.advantage[live],
        kl=kl_divergence(old, new)[live],
    )
    rows.ratio = (rows.logp - rows.old_logp).exp()
    by_hand = formula(rows).mean()
    error = (opinion.value - batch.returns)[live] ** 2
    if within := numbers.get("value_clip"):
        kept = batch.value + (opinion.value - batch.value).clamp(-within, within)
        error = torch.maximum(error, (kept - batch.returns)[live] ** 2)
    if name in POLICY_ALONE:
        got = gradient(learner.fit(policy.evaluate(batch), batch)[0], policy)
        torch.testing.assert_close(got, gradient((error / 2).mean(), policy), rtol=1e-9, atol=1e-12)
    else:
        by_hand = by_hand + WEIGHTS["value_coef"] * (error / 2).mean()
        by_hand = by_hand - WEIGHTS["entropy_coef"] * new.entropy()[live].mean()
    loss = learner.objective(policy.evaluate(batch), batch)[0]
    torch.testing.assert_close(loss, by_hand, rtol=1e-6, atol=1e-9)  # a Coefficient's column is float32
    torch.testing.assert_close(gradient(loss, policy), gradient(by_hand, policy), rtol=1e-6, atol=1e-9)


def test_the_clip_range_shrinks_where_updates_go_far_and_grows_where_they_do_not() -> None:
    for target, factor in ((1e-6, 1 / 1.5), (1e3, 1.5)):
        learner = AdaptiveClip(fresh(), AdaptiveClipConfig(clip=0.2, target_kl=target, lr=1e-3))
        batch = collected(learner.policy)  # type: ignore[arg-type]
        used = [float(learner.step(batch, 0.0)["clip"]) for _ in range(3)]
        assert used == pytest.approx([max(0.02, min(0.5, 0.2 * factor**i)) for i in range(3)])


def test_every_pass_after_the_first_learns_from_advantages_of_the_critic_of_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, seen = fresh(), []
    learner = RecomputePPO(policy, RecomputePPO.Config(epochs=3, minibatches=2, lr=1e-2, lam=0.8))
    inner = RecomputePPO.step.__globals__["sgd"]

    def watched(policy: ActorCritic, optimizer: Any, objective: Any, batch: Batch, epochs: int, *rest: Any) -> Any:
        with torch.no_grad():
            seen.append((batch, policy.evaluate(batch).value))
        assert epochs == 1
        return inner(policy, optimizer, objective, batch, epochs, *rest)

    monkeypatch.setitem(RecomputePPO.step.__globals__, "sgd", watched)
    batch = collected(policy)
    learner.step(batch, 0.0)
    assert len(seen) == 3
    assert torch.equal(seen[0][0].value, batch.value)
    for learned, value in seen:
        torch.testing.assert_close(learned.value, value)
        following = torch.cat([value[1:], batch.next_value[-1:]])
        wanted = gae(batch.replace(value=value, next_value=following), 0.99, 0.8)
        live = batch.mask
        if learned is not seen[0][0]:
            torch.testing.assert_close(learned.advantage[live], wanted.advantage[live])
            torch.testing.assert_close(learned.returns[live], wanted.returns[live])
    moves = [(learned.value - batch.value).abs().max().item() for learned, _ in seen]
    assert moves[0] == 0 < moves[1] < moves[2] < math.inf
