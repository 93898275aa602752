"""What holds for every distribution over actions; masks, spaces made of spaces, and which head is for what."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from gymnasium.vector.utils import iterate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from proximo.batch import Batch, leaves_of, tree_map, with_leaves
from proximo.compiler.trace import Trace
from proximo.errors import ConfigError, UnknownName, UnsupportedSpace
from proximo.models import distributions
from proximo.models.distributions import Categorical, Composite, GaussianHead, MultiCategorical, gumbel, head_for
from proximo.models.distributions.discrete import FORBIDDEN

CPU = torch.device("cpu")
BOX = spaces.Box(np.array([-1.0, 0.0]), np.array([3.0, 0.5]), dtype=np.float64)
NEST = spaces.Dict(
    {
        "b": spaces.Tuple((spaces.Discrete(3, start=2), spaces.Box(-2, 2, (2, 1)))),
        "a": spaces.MultiDiscrete([2, 3]),
        "c": spaces.Dict({"x": spaces.MultiBinary(2), "a.b": spaces.Discrete(2)}),
    }
)
HEADS: dict[str, Any] = {
    "discrete": (spaces.Discrete(4), {}),
    "multi-discrete": (spaces.MultiDiscrete([2, 3, 4]), {}),
    "multi-binary": (spaces.MultiBinary(3), {}),
    "gaussian": (BOX, {}),
    "gaussian, state": (BOX, dict(state_std=True)),
    "squashed": (BOX, dict(kind="squashed", log_std_init=0.5)),
    "squashed, state": (BOX, dict(kind="squashed", state_std=True)),
    "beta": (BOX, dict(kind="beta")),
    "nest": (NEST, {}),
    "nest, beta": (NEST, dict(kind="beta")),
    "nest, squashed": (NEST, dict(kind="squashed", state_std=True)),
}
each_head = pytest.mark.parametrize("name", HEADS)


def head_named(name: str) -> Any:
    space, options = HEADS[name]
    return head_for(space, **options)


@each_head
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_dtypes_and_the_distance_from_itself(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head = head_named(name).to(dtype)
    distribution, other = (head(2 * torch.randn(5, 3, head.outputs, dtype=dtype)) for _ in range(2))
    noise = head.noise(5, 3, device=CPU)
    action, mode = distribution.sample(noise), distribution.mode()
    assert [x.shape for x in leaves_of(action)] == [x.shape for x in leaves_of(mode)]
    assert [x.dtype for x in leaves_of(action)] == [x.dtype for x in leaves_of(mode)]
    for leaf in (*leaves_of(distribution), *leaves_of(noise), *leaves_of(action), *leaves_of(mode)):
        assert leaf.shape[:2] == (5, 3)
        assert leaf.isfinite().all()
    numbers = [distribution.logp(action), distribution.logp(mode), distribution.entropy(), distribution.kl(other)]
    for number in numbers:
        assert number.shape == (5, 3)
        assert number.dtype == dtype
        assert number.isfinite().all()
    assert distribution.kl(distribution).abs().max() < (1e-5 if dtype == torch.float32 else 1e-13)
    assert (numbers[-1] > 0).all()


@each_head
def test_samples_have_the_entropy_and_the_divergence_that_are_said(name: str) -> None:
    """Means of −log p and of log p − log q over samples, within five standard errors."""
    torch.manual_seed(0)
    head, n = head_named(name).double(), 40_000
    with torch.no_grad():
        one, other = (head(torch.randn(head.outputs).double().expand(n, -1)) for _ in range(2))
        action = one.sample(head.noise(n, device=CPU))
        logp, logq = one.logp(action), other.logp(action)
    for drawn, said in ((-logp, one.entropy()), (logp - logq, one.kl(other))):
        assert (drawn.mean() - said[0]).abs() < 5 * drawn.std() / n**0.5 + 1e-12


@each_head
def test_rows_can_be_cut_from_a_column_of_distributions(name: str) -> None:
    torch.manual_seed(0)
    head = head_named(name)
    old, now = (head(torch.randn(4, 3, head.outputs)) for _ in range(2))
    action = old.sample(head.noise(4, 3, device=CPU))
    batch = Batch(old=old, action=action, mask=torch.ones(4, 3, dtype=torch.bool))
    rows = batch.units().part(torch.tensor([5, 0]))
    assert type(rows.old) is type(old)
    torch.testing.assert_close(rows.old.logp(rows.action), old.logp(action).flatten()[[5, 0]])
    again = with_leaves(old, leaves_of(old))
    torch.testing.assert_close(again.kl(now), old.kl(now))


@each_head
def test_what_a_distribution_does_can_be_traced(name: str) -> None:
    """Acting, and what is differentiated once (log-probability, entropy) and twice (KL)."""
    torch.manual_seed(0)
    head = head_named(name)
    noise = head.noise(6, device=CPU)
    given = [torch.randn(6, head.outputs), torch.randn(6, head.outputs), *leaves_of(noise)]

    def everything(outputs: Tensor, before: Tensor, *drawn: Tensor) -> tuple[Tensor, ...]:
        outputs = outputs.detach().requires_grad_()
        distribution, old = head(outputs), head(before)
        action = tree_map(torch.detach, distribution.sample(with_leaves(noise, drawn)))
        loss = distribution.logp(action).sum() + distribution.entropy().sum()
        (gradient,) = torch.autograd.grad(loss + old.kl(distribution).sum(), outputs, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), outputs)
        return loss.detach(), second, *leaves_of(action)

    assert Trace(everything, given).operations


# Masks.


def by_hand(logits: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Log-probabilities of the allowed choices alone, in float64."""
    some = logits[allowed].astype(np.float64)
    return some - some.max() - np.log(np.exp(some - some.max()).sum())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.sampled_from([1, 2, 3, 30, 5000]),
    scale=st.sampled_from([0.1, 3.0, 100.0]),
    shift=st.sampled_from([0.0, -1e4, 1e4]),
    share=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_masked_choice_is_one_among_the_allowed(
    seed: int, n: int, scale: float, shift: float, share: float, dtype: torch.dtype
) -> None:
    rng = np.random.default_rng(seed)
    allowed = rng.random(n) < share
    allowed[rng.integers(n)] = True
    a, b = (torch.tensor(scale * rng.normal(size=n) + shift, dtype=dtype, requires_grad=True) for _ in range(2))
    mask = torch.tensor(allowed)
    one, other = Categorical.from_logits(a, mask), Categorical.from_logits(b, mask.to(torch.int8))
    p, q = by_hand(a.detach().numpy(), allowed), by_hand(b.detach().numpy(), allowed)
    rounding = torch.finfo(dtype).eps * max(1, -p.min(), -q.min())  # of the greatest numbers that are added
    close = partial(np.testing.assert_allclose, rtol=0, atol=10 * rounding)
    close(one.logp_all.detach()[mask], p)
    assert (one.logp_all[~mask] == FORBIDDEN).all()
    entropy, kl = -(np.exp(p) * p).sum(), (np.exp(p) * (p - q)).sum()
    close(one.entropy().item(), entropy)
    close(one.kl(other).item(), kl)
    assert one.kl(one).item() == 0
    assert allowed[one.mode()]
    by_entropy = torch.autograd.grad(one.entropy(), a, retain_graph=True)[0]
    close(by_entropy[mask], -np.exp(p) * (p + entropy))
    by_first, by_second = torch.autograd.grad(one.kl(other), (a, b))
    close(by_first[mask], np.exp(p) * (p - q - kl))
    close(by_second[mask], np.exp(q) - np.exp(p))
    for gradient in (by_entropy, by_first, by_second):
        assert (gradient[~mask] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_allowed_choice_is_certain(dtype: torch.dtype) -> None:
    logits = torch.randn(7, 4000, dtype=dtype, requires_grad=True)
    only = torch.arange(7) * 500
    allowed = torch.nn.functional.one_hot(only, 4000)
    one = Categorical.from_logits(logits, allowed)
    torch.testing.assert_close(one.sample(gumbel(7, 4000, device=CPU)), only)
    assert (one.logp(only) == 0).all()
    assert (one.entropy() == 0).all()
    gradient = torch.autograd.grad(one.logp(only).sum() + one.entropy().sum(), logits)[0]
    assert (gradient == 0).all()


@pytest.mark.parametrize("space", [spaces.Discrete(9), spaces.MultiDiscrete([2, 3, 4])])
def test_a_mask_that_allows_everything_changes_no_bit(space: gym.Space) -> None:
    torch.manual_seed(0)
    head: Any = head_for(space)
    free, masked = (torch.linspace(-3, 50, 9).repeat(6, 1).requires_grad_() for _ in range(2))
    one, other = head(free), head(masked, torch.ones(6, 9))
    noise = head.noise(6, device=CPU)
    action = one.sample(noise)
    assert torch.equal(action, other.sample(noise))
    for a, b in zip(leaves_of(one), leaves_of(other), strict=True):
        assert torch.equal(a, b)
    gradients = [
        torch.autograd.grad((d.logp(action) + d.entropy()).sum(), x)[0] for d, x in ((one, free), (other, masked))
    ]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("extreme", [0.0, 1 - 2.0**-53])
def test_noise_is_bounded_as_the_constant_needs(extreme: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda shape, dtype, device: torch.full(shape, extreme, dtype=dtype))
    assert -4 < gumbel(1, device=CPU).item() < 37


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_forbidden_is_not_drawn_at_the_worst(dtype: torch.dtype) -> None:
    """A million allowed choices, equally likely and unlucky; one forbidden, which the network wants, and lucky."""
    logits = torch.zeros(1_000_001, dtype=dtype)
    logits[-1] = 1e30
    allowed = logits == 0
    noise = torch.where(allowed, -4.0, 37.0)
    one = Categorical.from_logits(logits, allowed)
    assert allowed[one.sample(noise)]
    assert one.entropy().item() == pytest.approx(np.log(1e6), rel=1e-5)


def test_masked_draws_have_the_right_frequencies() -> None:
    torch.manual_seed(0)
    n, allowed = 100_000, torch.tensor([True, False, True, True])
    logits = torch.tensor([0.0, 5.0, 1.0, -1.0])
    wanted = logits.masked_fill(~allowed, -torch.inf).softmax(-1)
    one = Categorical.from_logits(logits.expand(n, 4), allowed)
    drawn = one.sample(gumbel(n, 4, device=CPU)).bincount(minlength=4) / n
    assert drawn[1] == 0
    assert (drawn - wanted).abs().max() < 5 * (0.25 / n) ** 0.5


def test_a_row_that_allows_nothing_is_finite() -> None:
    logits = torch.randn(3, 5, requires_grad=True)
    one = Categorical.from_logits(logits, torch.zeros(3, 5))
    other = Categorical.from_logits(logits)
    drawn = one.sample(gumbel(3, 5, device=CPU))
    numbers = [one.entropy(), one.kl(one), one.kl(other), one.logp(one.mode()), one.logp(drawn)]
    assert torch.stack(numbers).isfinite().all()
    gradient = torch.autograd.grad(torch.stack(numbers).sum(), logits)[0]
    assert (gradient == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_masked_choices_in_parts_by_enumeration(seed: int) -> None:
    """Sums over all joint actions: the mean of ∇ log p is zero, that of −log p ∇ log p the gradient of the entropy, and
    that of its square, Fisher's matrix, the curvature of the KL."""
    torch.manual_seed(seed)
    head: Any = head_for(spaces.MultiDiscrete([2, 3, 4]))
    logits = torch.randn(9).double().requires_grad_()
    allowed = torch.tensor([1, 1, 1, 0, 1, 0, 1, 1, 1])
    one, other = head(logits, allowed), head(torch.randn(9).double(), allowed)
    assert isinstance(one, MultiCategorical)
    actions = torch.tensor(list(itertools.product(range(2), range(3), range(4))))
    possible = torch.tensor([bool(allowed[a] and allowed[2 + b] and allowed[5 + c]) for a, b, c in actions])
    logp, logq = (tree_map(lambda x: x.expand(24, -1), d).logp(actions) for d in (one, other))
    assert ((logp > -1000) == possible).all()
    p = logp.exp().detach()
    torch.testing.assert_close(p.sum(), torch.tensor(1.0).double())
    torch.testing.assert_close(one.entropy(), -(p * logp).sum())
    torch.testing.assert_close(one.kl(other), (p * (logp - logq)).sum())
    gradient = partial(torch.autograd.grad, inputs=logits, retain_graph=True)
    torch.testing.assert_close(gradient((p * logp).sum())[0], torch.zeros(9).double())
    torch.testing.assert_close(gradient(-(p * logp.detach() * logp).sum())[0], gradient(one.entropy())[0])
    scores = torch.stack([gradient(each)[0] for each in logp[possible]])
    fisher = torch.autograd.functional.hessian(lambda x: tree_map(torch.detach, one).kl(head(x, allowed)), logits)
    torch.testing.assert_close(fisher, (p[possible, None] * scores).T @ scores)


# Spaces made of spaces.


def test_sums_over_the_parts() -> None:
    torch.manual_seed(0)
    head: Any = head_for(NEST)
    assert list(head(torch.zeros(head.outputs)).parts) == list(NEST.spaces)
    one, other = (head(torch.randn(6, head.outputs)) for _ in range(2))
    action = one.sample(head.noise(6, device=CPU))

    def simple(tree: Any) -> list[Any]:
        tree = tree.parts if isinstance(tree, Composite) else tree
        if not isinstance(tree, dict) and type(tree) is not tuple:
            return [tree]
        return [leaf for part in (tree.values() if isinstance(tree, dict) else tree) for leaf in simple(part)]

    parts = list(zip(simple(one), simple(other), simple(action), strict=True))
    assert len(parts) == 5
    torch.testing.assert_close(one.logp(action), sum(d.logp(a) for d, _, a in parts))
    torch.testing.assert_close(one.entropy(), sum(d.entropy() for d, _, _ in parts))
    torch.testing.assert_close(one.kl(other), sum(d.kl(e) for d, e, _ in parts))


def test_a_nest_of_masks() -> None:
    torch.manual_seed(0)
    head: Any = head_for(NEST)
    outputs, noise = torch.randn(500, head.outputs), head.noise(500, device=CPU)
    assert head.options == 5 + 3 + 2
    one_of_b = torch.tensor([1, 1, 1, 1, 1, 0, 1, 1, 1, 1])
    free, masked = head(outputs), head(outputs, one_of_b)
    drawn, unmasked = masked.sample(noise), free.sample(noise)
    assert (unmasked["b"][0] == 0).any()
    assert not (drawn["b"][0] == 0).any()
    for name in ("a", "c"):
        assert all(map(torch.equal, leaves_of(drawn[name]), leaves_of(unmasked[name])))
    assert torch.equal(drawn["b"][1], unmasked["b"][1])
    both = head(outputs, torch.tensor([[1, 0, 0, 0, 1, 1, 1, 1, 1, 0]]).expand(500, 10))
    assert (both.sample(noise)["a"] == torch.tensor([0, 2])).all()
    assert (both.sample(noise)["c"]["a.b"] == 0).all()
    assert both.logp(drawn).isfinite().all()


class Recorder(gym.Env):
    """Refuses an action that is not of its space; the reward is a number that depends on all of it."""

    observation_space = spaces.Box(-1, 1, (1,))

    def __init__(self, action_space: gym.Space) -> None:
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        return (
            np.zeros(1, np.float32),
            float(flattened(action) @ range(1, 1 + len(flattened(action)))),
            False,
            False,
            {},
        )


def flattened(action: Any) -> np.ndarray:
    """All numbers of an action in the order of its parts."""
    parts = action.values() if isinstance(action, dict) else action if isinstance(action, tuple) else None
    if parts is None:
        return np.asarray(action, np.float64).reshape(-1)
    return np.concatenate([flattened(part) for part in parts])


@pytest.mark.parametrize(
    "space", [NEST, spaces.Tuple((spaces.Discrete(3), spaces.Tuple((spaces.Box(0, 1, ()),)))), spaces.Tuple((BOX, BOX))]
)
@pytest.mark.parametrize("kind", ["gaussian", "squashed", "beta"])
@pytest.mark.filterwarnings("ignore:.*Casting input x")  # a Box without dimensions
def test_vector_environments_take_what_to_env_gives(space: gym.Space, kind: Any) -> None:
    torch.manual_seed(0)
    head: Any = head_for(space, kind)
    action = head(torch.randn(3, head.outputs)).sample(head.noise(3, device=CPU))
    action = head.to_env(tree_map(lambda x: x.detach().numpy(), action))
    envs = SyncVectorEnv([lambda: Recorder(space)] * 3)
    envs.reset()
    _, reward, *_ = envs.step(action)
    lanes = [flattened(one) for one in iterate(envs.action_space, action)]
    np.testing.assert_allclose(reward, [lane @ range(1, 1 + len(lane)) for lane in lanes], rtol=1e-6)
    assert len({float(r) for r in reward}) == 3
    assert envs.action_space.contains(action)


def test_any_key_will_do() -> None:
    parts = {key: spaces.Discrete(2) for key in ("a.b", "forward", "keys", "", "heads")}
    head: Any = head_for(spaces.Dict(parts))
    assert set(head(torch.zeros(10)).mode()) == set(parts)


# Which head is for what.


def test_plain_heads_are_what_they_were() -> None:
    head = head_for(BOX)
    assert isinstance(head, GaussianHead)
    assert {name: x.tolist() for name, x in head.state_dict().items()} == {"log_std": [0, 0]}
    for space in (spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)):
        assert not head_for(space).state_dict()
    nest = head_for(spaces.Tuple((spaces.Discrete(2), BOX)), "squashed", log_std_init=-1.5)
    assert {name: x.tolist() for name, x in nest.state_dict().items()} == {"heads.1.base.log_std": [-1.5, -1.5]}
    assert not head_for(NEST, state_std=True).state_dict()
    assert isinstance(head_for(NEST)(torch.zeros(14)), Composite)


HALF = spaces.Box(np.array([0.0, -1.0]), np.array([np.inf, 1.0]), dtype=np.float64)
REFUSED: dict[str, Any] = {
    "text": (spaces.Text(3), {}, UnsupportedSpace, "Text.* is not supported yet"),
    "nothing": (spaces.Box(-1, 1, (0,)), {}, UnsupportedSpace, "at least one number"),
    "no parts": (spaces.Tuple(()), {}, UnsupportedSpace, "at least one number"),
    "no parts within": (spaces.Dict(a=spaces.Dict({})), {}, UnsupportedSpace, "at least one number"),
    "text within": (spaces.Tuple((BOX, spaces.Text(3))), {}, UnsupportedSpace, "Text.* is not supported yet"),
    "unbounded squashed": (
        HALF,
        dict(kind="squashed"),
        UnsupportedSpace,
        "infinite bounds.*squashed cannot have: take gaussian",
    ),
    "unbounded beta": (
        spaces.Tuple((HALF,)),
        dict(kind="beta"),
        UnsupportedSpace,
        "infinite bounds.*distribution beta",
    ),
    "beta with deviation": (BOX, dict(kind="beta", state_std=True), ConfigError, "state_std"),
    "unknown kind": (BOX, dict(kind="gausian"), UnknownName, "did you mean gaussian"),
    "beta without box": (spaces.Discrete(2), dict(kind="beta"), ConfigError, "distribution is beta.*no Box"),
    "deviation without box": (spaces.Dict(a=spaces.Discrete(2)), dict(state_std=True), ConfigError, "no Box"),
    "wide beginning": (BOX, dict(state_std=True, log_std_init=3.0), ConfigError, "between -10 and 2"),
    "no beginning": (BOX, dict(kind="squashed", state_std=True, log_std_init=np.nan), ConfigError, "is nan"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_one_line(name: str) -> None:
    space, options, error, said = REFUSED[name]
    with pytest.raises(error, match=said) as caught:
        head_for(space, **options)
    assert "\n" not in str(caught.value)


def test_the_package_says_what_it_has() -> None:
    assert all(hasattr(distributions, name) for name in distributions.__all__)
