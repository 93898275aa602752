"""Natural gradients: the Fisher matrix, conjugate gradient, the trust region's bound, and what is left alone."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from proximo.advantages import standardize
from proximo.algorithms.natural import NPG
from proximo.algorithms.trpo import TRPO
from proximo.algorithms.trpo_reuse import TRPOReuse
from proximo.batch import Batch, leaves_of, with_leaves
from proximo.compiler import compiling, lent
from proximo.errors import NonFiniteError, StaleGraph
from proximo.models.actor_critic import ActorCritic
from proximo.models.distributions import Categorical
from proximo.models.network import Network
from proximo.objectives import Diagnostics, Term, entropy, per_action, surrogate, value_error
from proximo.policy import Distribution, Evaluation
from proximo.reduce import masked_mean
from proximo.updaters.adam import Adam
from proximo.updaters.natural import conjugate_gradient, fisher_vector_product, natural_step
from proximo.updaters.sgd import sgd
from tests.conftest import rest_slow
from tests.test_attack import KINDS, walked
from tests.test_compiled import SPACES, Numbers, batch_for, needs_compiler, policy_for

every_space = pytest.mark.parametrize("name", SPACES)


def perturbed(name: str, scale: float = 0.3) -> ActorCritic:
    """A small policy that is far from uniform."""
    policy = ActorCritic(gym.spaces.Box(-1, 1, (5,)), SPACES[name], Network(hidden=(6, 5)))
    for parameter in policy.parameters():
        parameter.data += scale * torch.randn_like(parameter)
    return policy


def detached(distribution: Distribution) -> Distribution:
    return with_leaves(distribution, [x.detach().clone() for x in leaves_of(distribution)])


def double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def exact_kl(policy: ActorCritic, before: Tensor, batch: Batch) -> float:
    """KL(π_before ‖ π) over the live rows in float64, row by row formulas of torch's own."""
    names = {name: parameter.shape for name, parameter in policy.named_parameters()}
    found = []
    for vector in (before, torch.cat([p.detach().reshape(-1) for p in policy.parameters()])):
        parts = vector.double().split([shape.numel() for shape in names.values()])
        tensors = {name: x.view(shape) for (name, shape), x in zip(names.items(), parts, strict=True)}
        tensors |= {name: double(x) for name, x in policy.named_buffers()}
        found.append(detached(lent(policy, tensors, policy.evaluate, batch.map(double)).distribution))
    return found[0].kl(found[1])[batch.mask].mean().item()


@every_space
def test_fisher_vector_products_are_those_of_the_exact_hessian_of_the_kl(name: str) -> None:
    torch.manual_seed(0)
    policy = perturbed(name)
    fisher_is_the_hessian(policy, batch_for(policy))


def of_kind(name: str) -> tuple[ActorCritic, Batch]:
    """Any kind of policy with a trunk for the critic, somewhere, and a collection of it."""
    torch.manual_seed(0)
    seen, acts, numbers = KINDS[name]
    policy = ActorCritic(seen, acts, Network(hidden=(6,), trunk="separate", **numbers))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    batch = Batch(**{column: x for column, x in vars(walked(policy)).items() if not column.startswith("last")})
    return policy, batch.replace(mask=batch.mask & (torch.arange(batch.mask.numel()).view_as(batch.mask) != 4))


@pytest.mark.parametrize("name", KINDS)
def test_so_they_are_for_every_kind_of_policy(name: str) -> None:
    fisher_is_the_hessian(*of_kind(name))


def fisher_is_the_hessian(policy: ActorCritic, batch: Batch) -> None:
    policy, batch = policy.double(), batch.map(double)
    old, parameters = detached(policy.evaluate(batch).distribution), list(policy.parameters())
    product = fisher_vector_product(policy.evaluate(batch).distribution, batch.mask, parameters)
    vector = torch.cat([p.detach().reshape(-1) for p in parameters])

    def kl(vector: Tensor) -> Tensor:
        parts = [x.view_as(p) for x, p in zip(vector.split([p.numel() for p in parameters]), parameters, strict=True)]
        tensors = dict(zip([n for n, _ in policy.named_parameters()], parts, strict=True))
        return masked_mean(old.kl(lent(policy, tensors, policy.evaluate, batch).distribution), batch.mask)

    hessian = torch.autograd.functional.hessian(kl, vector)
    assert not batch.mask.all()
    assert isinstance(hessian, Tensor)
    assert hessian.abs().max() > 1e-2
    fisher = torch.stack([product(row) for row in torch.eye(len(vector), dtype=torch.float64)])
    torch.testing.assert_close(fisher, hessian, rtol=0, atol=1e-10)
    torch.testing.assert_close(product(vector), hessian @ vector, rtol=0, atol=1e-10)
    critics = torch.cat([torch.full((p.numel(),), "critic" in n) for n, p in policy.named_parameters()])
    assert critics.any()
    assert not fisher[critics].any()


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_policy_goes_a_step_within_the_bound(name: str) -> None:
    policy, batch = of_kind(name)
    batch = standardize(batch.replace(advantage=torch.randn(batch.mask.shape)))
    old = detached(policy.evaluate(batch).distribution)
    report = natural_step(policy, Adam(policy), surrogate(), batch, 0.01, damping=0.01, halvings=10)
    assert report["step_size"] > 0
    assert report["loss"] < 0
    gone = masked_mean(old.kl(policy.evaluate(batch).distribution), batch.mask)
    assert 1e-3 < gone <= 0.01 + 1e-6


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 12), spread=st.floats(0, 3))
def test_conjugate_gradient_solves_to_its_residual(seed: int, size: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    matrix = basis @ torch.diag(10 ** (spread * torch.rand(size, generator=generator, dtype=torch.float64))) @ basis.T
    b = torch.randn(size, generator=generator, dtype=torch.float64) * 10 ** (6 * spread - 9)
    x = conjugate_gradient(lambda v: matrix @ v, b, iterations=3 * size, tolerance=1e-6)
    assert (matrix @ x - b).norm() <= 2e-6 * b.norm()


def test_conjugate_gradient_stands_still_when_it_is_done() -> None:
    matrix = torch.diag(torch.tensor([1.0, 4.0]))
    one, other = (conjugate_gradient(lambda v: matrix @ v, torch.tensor([1.0, 0.0]), n) for n in (1, 50))
    assert one.tolist() == other.tolist() == [1, 0]
    assert conjugate_gradient(lambda v: matrix @ v, torch.zeros(2), 10).tolist() == [0, 0]
    assert conjugate_gradient(lambda v: 0 * v, torch.ones(2), 10).tolist() == [0, 0]  # no curvature
    assert conjugate_gradient(lambda v: v * torch.nan, torch.ones(2), 10).isnan().all()


def after(name: str, halvings: int | None, delta: float = 0.01, **numbers: Any) -> tuple[Tensor, Diagnostics]:
    """Parameters and report after a step of a fresh policy."""
    policy = policy_for(SPACES[name])
    optimizer, batch = Adam(policy), on_policy(policy)
    torch.manual_seed(2)
    report = natural_step(policy, optimizer, surrogate(), batch, delta, halvings=halvings, **numbers)
    return optimizer.state["vector"].clone(), report


@torch.no_grad()
def on_policy(policy: Any, **shape: int) -> Batch:
    batch = batch_for(policy, **shape)
    return standardize(batch.replace(logp=policy.evaluate(batch).logp))


@every_space
def test_trpo_and_natural_gradient_agree_where_the_search_accepts_at_once(name: str) -> None:
    (one, told), (other, said) = after(name, None), after(name, 10)
    assert torch.equal(one, other)
    assert told["step_size"] == said["step_size"] == 1
    assert said["kl_old"] <= 0.01
    assert said["loss"] < 0
    assert {key: value.item() for key, value in told.items()} == {key: value.item() for key, value in said.items()}


@pytest.mark.parametrize("make", [NPG, TRPO, TRPOReuse])
def test_an_algorithm_takes_the_step_that_its_numbers_ask_for(make: Any) -> None:
    """Each number that differs makes another step."""

    def after_a_step(**numbers: Any) -> tuple[float, ...]:
        policy = policy_for(SPACES["box"])
        batch, no = batch_for(policy), torch.zeros(16, 4, dtype=torch.bool)
        with torch.no_grad():
            now = policy.evaluate(batch)
        columns = dict(logp=now.logp, value=now.value, reward=batch.returns, next_value=batch.returns, start=no)
        torch.manual_seed(3)
        algorithm = make(policy, make.Config(**dict(fisher_fraction=0.5, lr=1e-12) | numbers))
        algorithm.step(batch.replace(**columns, terminated=no, truncated=no), 0.0)
        return tuple(algorithm.optimizer.state["vector"].tolist())

    changes: list[dict[str, Any]] = [dict(delta=0.02), dict(cg_iterations=2), dict(cg_damping=0.5)]
    changes.append(dict(fisher_fraction=1.0))
    ends = [after_a_step(), *(after_a_step(**change) for change in changes)]
    assert len(set(ends)) == len(ends)
    assert after_a_step() == ends[0]


@pytest.mark.parametrize("make", [TRPO, TRPOReuse])
def test_the_search_halves_as_often_as_it_may(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    inside = make.step.__globals__
    step = inside["natural_step"]

    def watched(*given: Any) -> Diagnostics:
        asked.append(given[-1])
        return step(*given)

    monkeypatch.setitem(inside, "natural_step", watched)
    policy = policy_for(SPACES["box"])
    batch, no = batch_for(policy), torch.zeros(16, 4, dtype=torch.bool)
    columns = dict(value=batch.returns, reward=batch.returns, next_value=batch.returns, start=no)
    make(policy, make.Config(halvings=7)).step(batch.replace(**columns, terminated=no, truncated=no), 0.0)
    assert asked == [7]


def test_the_two_algorithms_agree_as_well() -> None:
    ends = []
    for make in (NPG, TRPO):
        policy = policy_for(SPACES["box"])
        batch = batch_for(policy)
        batch = batch.replace(logp=policy.evaluate(batch).logp.detach(), reward=batch.returns, value=batch.returns)
        no = torch.zeros_like(batch.mask)
        algorithm = make(policy, make.Config(fisher_fraction=1.0))  # type: ignore[arg-type]
        torch.manual_seed(3)
        report = algorithm.step(batch.replace(next_value=batch.returns, terminated=no, truncated=no), 0.0)
        assert report["step_size"] == 1
        ends.append(algorithm.optimizer.state["vector"].clone())
    assert torch.equal(*ends)


def test_a_step_goes_as_far_as_it_says() -> None:
    policy = policy_for(SPACES["box"])
    batch = on_policy(policy).map(double)
    optimizer = Adam(policy.double())
    before = optimizer.state["vector"].clone()
    same = copy.deepcopy(policy)  # whose parameters stay
    product = fisher_vector_product(same.evaluate(batch).distribution, batch.mask, list(same.parameters()))
    report = natural_step(policy, optimizer, surrogate(), batch, 1e-6)
    step = optimizer.state["vector"] - before
    assert (step @ (product(step) + 0.1 * step)).item() == pytest.approx(2e-6, rel=1e-9)
    assert report["kl_old"].item() == pytest.approx(0.5 * (step @ product(step)).item(), rel=0.01)
    assert exact_kl(policy, before, batch) == pytest.approx(report["kl_old"].item(), rel=1e-6)


def start(name: str) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in policy_for(SPACES[name]).parameters()])


def uphill() -> Term:
    """A Term whose gradient points the wrong way: no step along it gains anything."""

    def formula(evaluation: Evaluation, batch: Batch) -> tuple[Tensor, Diagnostics]:
        loss = -evaluation.logp * batch.advantage
        return 2 * loss.detach() - loss, {}

    return per_action("policy_loss", formula)


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=needs_compiler)])
@pytest.mark.parametrize("search", ["no gain", "bound"])
def test_a_failed_search_restores_every_bit(search: str, compile: bool) -> None:
    policy = policy_for(SPACES["box"])
    optimizer, batch = Adam(policy), on_policy(policy)
    before = {name: tensor.clone() for name, tensor in optimizer.state.items()}
    objective, delta = (uphill(), 0.01) if search == "no gain" else (surrogate(), 1e3)
    with compiling(compile):
        report = natural_step(policy, optimizer, objective, batch, delta, halvings=3 if search == "no gain" else 0)
    assert report["step_size"] == 0
    assert report["kl_old"].abs() < 1e-7
    assert all(torch.equal(tensor, before[name]) for name, tensor in optimizer.state.items())
    optimizer.must_hold(policy)


@every_space
def test_no_accepted_step_exceeds_the_bound(name: str) -> None:
    sizes = []
    for seed in range(40):
        torch.manual_seed(seed)
        policy = perturbed(name, scale=float(torch.rand(()) * 2))
        optimizer, batch = Adam(policy), on_policy(policy, steps=8, lanes=3)
        torch.manual_seed(seed)
        batch = batch.replace(advantage=torch.randn(8, 3) * 10 ** (12 * torch.rand(()) - 6))
        delta, before = float(10 ** (-4 * torch.rand(()))), optimizer.state["vector"].clone()
        report = natural_step(policy, optimizer, surrogate(), batch, delta, 10, 0.001, 0.5, halvings=8)
        kl = exact_kl(policy, before, batch)
        assert kl <= delta * (1 + 1e-4) + 1e-6, seed
        assert kl == pytest.approx(report["kl_old"].item(), rel=1e-3, abs=2e-6)
        assert (kl > 0) == (report["step_size"] > 0)
        sizes.append(report["step_size"].item())
    assert len(set(sizes)) > 2, "some steps were halved"


def test_a_fraction_of_the_rows_makes_the_fisher_matrix() -> None:
    policy = policy_for(SPACES["box"])
    optimizer, batch = Adam(policy), on_policy(policy)
    before, rows = optimizer.state["vector"].clone(), batch.flatten()
    torch.manual_seed(2)
    sample = rows.part(torch.randperm(64)[:16])
    names, parameters = zip(*policy.named_parameters(), strict=True)
    assert list(optimizer.shapes) == list(names)
    product = fisher_vector_product(policy.evaluate(sample).distribution, sample.mask, parameters)
    loss, _ = surrogate()(policy.evaluate(rows), rows)
    grads = torch.autograd.grad(loss, parameters, materialize_grads=True, retain_graph=True)
    gradient = torch.cat([g.reshape(-1) for g in grads])
    x = conjugate_gradient(lambda v: product(v) + 0.1 * v, -gradient, 10)
    wanted = before + (2 * 0.01 / (x @ (product(x) + 0.1 * x))).sqrt() * x
    few, _ = after("box", None, fraction=0.25)
    torch.testing.assert_close(few, wanted, rtol=0, atol=1e-5)
    assert (few - after("box", None)[0]).abs().max() > 1e-4


def test_the_value_function_and_the_moments_stay() -> None:
    policy = policy_for(SPACES["box"])
    optimizer, batch = Adam(policy, lr=1e-2), on_policy(policy)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    natural_step(policy, optimizer, surrogate() - 0.01 * entropy(), batch, 0.01)
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, before[name]) == (not name.startswith(("actor", "head"))), name
    assert not optimizer.state["exp_avg"].any()
    assert not optimizer.state["exp_avg_sq"].any()


def test_fitting_the_value_function_moves_nothing_of_the_policy() -> None:
    policy = policy_for(SPACES["box"])
    optimizer, batch = Adam(policy, lr=1e-2), on_policy(policy)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    sgd(policy, optimizer, value_error(), batch, 3, 2, 0.5)
    for name, tensor in policy.named_parameters():
        assert torch.equal(tensor, before[name]) == (not name.startswith("critic")), name


class Shared(nn.Module):
    """A policy whose value is read off the layer that actions are."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.actor, self.critic = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def evaluate(self, batch: Batch) -> Evaluation:
        features = self.trunk(batch.observation).tanh()
        distribution = Categorical.from_logits(self.actor(features))
        return Evaluation(distribution.logp(batch.action), self.critic(features).squeeze(-1), distribution)


def test_shared_parameters_go_with_the_policy() -> None:
    torch.manual_seed(0)
    policy: Any = Shared()
    optimizer, mask = Adam(policy, lr=1e-2), torch.ones(16, 4, dtype=torch.bool)
    columns = dict(observation=torch.randn(16, 4, 5), action=torch.randint(3, (16, 4)), advantage=torch.randn(16, 4))
    batch = Batch(**columns, mask=mask, returns=torch.randn(16, 4))
    batch = batch.replace(logp=policy.evaluate(batch).logp.detach())
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    old = detached(policy.evaluate(batch).distribution)
    report = natural_step(policy, optimizer, surrogate(), batch, 0.01, halvings=10)
    assert report["step_size"] == 1
    assert masked_mean(old.kl(policy.evaluate(batch).distribution), mask) <= 0.01
    still = [name for name, tensor in policy.state_dict().items() if torch.equal(tensor, before[name])]
    assert still == ["critic.weight", "critic.bias"]


def test_non_finite_numbers_are_named_and_change_nothing() -> None:
    policy = policy_for(SPACES["box"])
    optimizer, batch = Adam(policy), on_policy(policy)
    batch = batch.replace(mask=torch.ones_like(batch.mask))
    before = optimizer.state["vector"].clone()
    for value in (torch.nan, torch.inf):
        bad = batch.advantage.clone()
        bad[3, 2] = value
        with pytest.raises(NonFiniteError, match=f"advantage is {value} at step 3 of the rollout, lane 2"):
            natural_step(policy, optimizer, surrogate(), batch.replace(advantage=bad), 0.01, halvings=3)
        assert torch.equal(optimizer.state["vector"], before)
    with pytest.raises(NonFiniteError, match="lower delta"):
        natural_step(policy, optimizer, surrogate(), batch, 1e30)
    assert torch.equal(optimizer.state["vector"], before)


def test_without_an_advantage_there_is_no_step() -> None:
    policy = policy_for(SPACES["box"])
    optimizer, batch = Adam(policy), on_policy(policy)
    before = optimizer.state["vector"].clone()
    for halvings in (None, 3):
        batch = batch.replace(advantage=torch.zeros_like(batch.advantage))
        report = natural_step(policy, optimizer, surrogate(), batch, 0.01, halvings=halvings)
        assert report["grad_norm"] == 0
        assert torch.equal(optimizer.state["vector"], before)


@needs_compiler
@pytest.mark.parametrize("name", rest_slow(SPACES, ("discrete", "box")))
def test_a_compiled_step_is_the_uncompiled_one(name: str) -> None:
    few = dict(fraction=0.5, iterations=5)  # more of them make more of what rounding does
    one, told = after(name, 10, **few)
    with compiling(True):
        other, said = after(name, 10, **few)
        again, _ = after(name, 10, **few)
    assert torch.equal(other, again)
    torch.testing.assert_close(other, one, rtol=0, atol=1e-5)
    assert (one - start(name)).abs().max() > 1e-2, "it moved"
    assert told.keys() == said.keys()
    for key, value in told.items():
        torch.testing.assert_close(said[key], value, rtol=1e-3, atol=1e-5)


@needs_compiler
def test_a_number_that_changes_behind_the_surface_is_noticed() -> None:
    policy, numbers = policy_for(SPACES["box"]), Numbers()
    optimizer, batch, objective = Adam(policy), on_policy(policy), numbers.term()
    with compiling(True):
        for _ in range(15):
            natural_step(policy, optimizer, objective, batch, 1e-3)
        before = optimizer.state["vector"].clone()
        numbers.epsilon = 0.001
        with pytest.raises(StaleGraph, match="changed after it was compiled"):
            natural_step(policy, optimizer, objective, batch, 1e-3)
    assert torch.equal(optimizer.state["vector"], before)


def test_conjugate_gradients_stand_still_where_no_curvature_is_left() -> None:
    matrix, b = torch.diag(torch.tensor([1.0, 0.0, 0.0])), torch.tensor([1.0, 1.0, 0.0])
    few, many = (conjugate_gradient(lambda v: matrix @ v, b, iterations) for iterations in (3, 30))
    assert torch.equal(few, many)
