"""Distributions over boxes against integrals in float64, and their samples against the distribution function."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch.distributions import Beta as TorchBeta
from torch.distributions import kl_divergence

from proximo.models.distributions import Beta, Gaussian, SquashedGaussian, head_for
from proximo.models.distributions.beta import PROPOSALS
from proximo.models.distributions.continuous import LOG_STD, MIXTURE, log_cosh

CPU = torch.device("cpu")
BOX = spaces.Box(np.array([-1.0, 0.0]), np.array([3.0, 0.5]), dtype=np.float64)


def log_slope(u: Tensor) -> Tensor:
    """log(1 − tanh² u) from the definition of cosh, in float64."""
    u = u.double().abs()
    return 2 * (math.log(2) - u - torch.log1p(torch.exp(-2 * u)))


def ks(samples: Tensor, cdf: Tensor) -> float:
    """√n · sup |empirical − F|, from the distribution function at the sorted samples; above 2 once in 1,500 times."""
    n = len(samples)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return (torch.maximum(cdf - steps[:-1], steps[1:] - cdf).max() * n**0.5).item()


# Squashed.


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.0), (-3.0, 1.0), (0.0, 2.0), (15.0, -3.0)])
def test_squashed_density_is_one_in_all_and_its_integrals_are_entropy_and_divergence(
    mean: float, log_std: float
) -> None:
    """Integrals over a = tanh u, with da = tanh′(u) du."""
    std = math.exp(log_std)
    u = torch.linspace(mean - 12 * std, mean + 12 * std, 40_001, dtype=torch.float64).unsqueeze(-1)
    row = torch.full_like(u, mean)
    one = SquashedGaussian(Gaussian(row, torch.full_like(u, log_std)))
    other = SquashedGaussian(Gaussian(row + 0.3, torch.full_like(u, log_std + 0.2)))
    logp, logq, volume = one.logp(u), other.logp(u), log_slope(u)[:, 0].exp() * 24 * std / 40_000
    p = logp.exp() * volume
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert one.entropy()[0].item() == pytest.approx(-(p * logp).sum().item(), abs=1e-6)
    assert one.kl(other)[0].item() == pytest.approx((p * (logp - logq)).sum().item(), abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_squashed_logp_is_right_far_beyond_where_tanh_is_one(dtype: torch.dtype) -> None:
    u = torch.tensor([-80.0, -30, -9, -1, -1e-4, 0, 1e-4, 1, 9, 30, 80], dtype=dtype).unsqueeze(-1).requires_grad_()
    one = SquashedGaussian(Gaussian(torch.zeros_like(u), torch.full_like(u, 3.0)))
    got = one.logp(u)
    normal = -0.5 * (u.detach().double() / math.exp(3)).square() - 3 - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(got.detach().double(), (normal - log_slope(u.detach()))[:, 0], rtol=1e-6, atol=1e-6)
    gradient = torch.autograd.grad(got.sum(), u)[0]
    wanted = -u.detach() / math.exp(6) + 2 * u.detach().tanh()
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)


def test_mixture_is_the_logistic_distribution() -> None:
    """E[log cosh u] is as far off as log cosh at most, for any distribution of u."""
    assert sum(weight for weight, _ in MIXTURE) == pytest.approx(1, abs=1e-15)
    u = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    assert (log_cosh(u, torch.zeros_like(u)) + 0.5 * log_slope(u)).abs().max() < 4.1e-7


def test_squashed_entropy_and_its_gradient_by_quadrature() -> None:
    """E over 4,001 points of a standard normal variable; also for deviations at both ends of what there may be."""
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    weight = torch.exp(-0.5 * z.square())
    weight = weight / weight.sum()
    grid = [torch.linspace(-20, 20, 33, dtype=torch.float64), torch.linspace(*LOG_STD, 13, dtype=torch.float64)]
    mean, log_std = (x.reshape(-1).requires_grad_() for x in torch.meshgrid(*grid, indexing="ij"))
    u = mean[:, None] + log_std.exp()[:, None] * z
    wanted = log_std + 0.5 * math.log(2 * math.pi * math.e) - 2 * (weight * torch.cosh(u).log()).sum(-1)
    got = SquashedGaussian(Gaussian(mean[:, None], log_std[:, None])).entropy()
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
    both = zip(*(torch.autograd.grad(x.sum(), (mean, log_std)) for x in (got, wanted)), strict=True)
    for ours, theirs in both:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-6)
    single = SquashedGaussian(Gaussian(mean[:, None].float(), log_std[:, None].float())).entropy()
    torch.testing.assert_close(single.double(), wanted, rtol=2e-6, atol=2e-6)


def test_squashed_samples_in_the_box_have_the_distribution_that_was_said() -> None:
    torch.manual_seed(0)
    head: Any = head_for(spaces.Box(-1, 3, (1,), np.float64), "squashed", log_std_init=0.4)
    n = 50_000
    with torch.no_grad():
        action = head(torch.full((n, 1), -0.6)).sample(head.noise(n, device=CPU))
    inside = torch.from_numpy(head.to_env(action.double().numpy()))[:, 0].sort().values
    u = ((inside - 1) / 2).atanh()
    assert ks(inside, torch.special.ndtr((u + 0.6) / math.exp(0.4))) < 2


# Beta.

PAIRS = [(1.0, 1.0), (1.0, 4.0), (1.69, 1.69), (2.5, 1.2), (40.0, 3.0), (900.0, 1100.0)]


def beta_of(a: float, b: float, *shape: int) -> Beta:
    return Beta(torch.full((*shape, 1), a).double(), torch.full((*shape, 1), b).double())


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_beta_agrees_with_integrals_and_with_torch(a: float, b: float) -> None:
    y = torch.linspace(-45, 45, 90_001, dtype=torch.float64).unsqueeze(-1)
    one, other = beta_of(a, b, len(y)), beta_of(a + 0.5, 1.1 * b, len(y))
    x, volume = y.sigmoid(), (y.sigmoid() * (-y).sigmoid())[:, 0] * 1e-3
    logp, logq = one.logp(y), other.logp(y)
    p = logp.exp() * volume
    assert p.sum().item() == pytest.approx(1, abs=1e-9)
    assert one.entropy()[0].item() == pytest.approx(-(p * logp).sum().item(), abs=1e-8)
    assert one.kl(other)[0].item() == pytest.approx((p * (logp - logq)).sum().item(), abs=1e-8)
    theirs, another = (TorchBeta(d.alpha, d.beta) for d in (one, other))
    near = (y.abs() < 6)[:, 0]
    torch.testing.assert_close(logp[near], theirs.log_prob(x)[near, 0])
    torch.testing.assert_close(one.entropy(), theirs.entropy()[:, 0])
    torch.testing.assert_close(one.kl(other), kl_divergence(theirs, another)[:, 0])
    if max(a, b) > 1:
        best = theirs.log_prob(one.mode().sigmoid().clamp(1e-12, 1 - 1e-12))[0, 0]
        assert best >= logp.max() - 1e-9


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_beta_samples_have_the_distribution_that_was_said(a: float, b: float) -> None:
    torch.manual_seed(0)
    n, fine = 50_000, torch.linspace(-45, 45, 400_001, dtype=torch.float64)
    head: Any = head_for(spaces.Box(0, 1, (1,)), "beta")
    drawn = beta_of(a, b, n).sample(head.noise(n, device=CPU))[:, 0].sort().values
    density = beta_of(a, b, len(fine)).logp(fine.unsqueeze(-1)).exp() * fine.sigmoid() * (-fine).sigmoid()
    below = density.cumsum(0) - 0.5 * density
    cdf = torch.from_numpy(np.interp(drawn.numpy(), fine.numpy(), (below / density.sum()).numpy()))
    assert ks(drawn, cdf) < 2


@pytest.mark.parametrize("alpha", [1.0, 1.5, 10.0, 1e4])
def test_a_proposal_is_accepted_often_enough(alpha: float) -> None:
    """The chance that a gamma variate has no accepted proposal is 0.05 to the power of PROPOSALS."""
    torch.manual_seed(0)
    z, log_u = torch.randn(200_000).double(), torch.rand(200_000).double().log()
    d = alpha - 1 / 3
    v = (1 + z / (9 * d) ** 0.5) ** 3
    accepted = (v > 0) & (log_u < 0.5 * z**2 + d - d * v + d * v.clamp(min=1e-300).log())
    assert accepted.double().mean() > 0.95
    assert 0.05**PROPOSALS < 2e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_beta_is_finite_where_it_is_extreme(dtype: torch.dtype) -> None:
    """Outputs of a network gone astray, and noise of which no proposal can be accepted."""
    torch.manual_seed(0)
    head: Any = head_for(spaces.Box(0, 1, (1,)), "beta")
    outputs = torch.tensor([[-200.0, -200], [-200, 50], [1000, -200], [0, 0]], dtype=dtype).requires_grad_()
    one, noise = head(outputs), head.noise(4, device=CPU)
    noise[..., 0], noise[..., 1] = -10, 0
    for action in (one.sample(noise), one.mode(), torch.full((4, 1), 80.0, dtype=dtype)):
        numbers = torch.cat([action[:, 0], one.logp(action), one.entropy(), one.kl(head(outputs.flip(-1)))])
        assert numbers.isfinite().all()
        assert torch.autograd.grad(numbers.sum(), outputs, retain_graph=True)[0].isfinite().all()
    share = one.mode().sigmoid()[:, 0]
    assert share[[0, 3]].tolist() == [0.5, 0.5]
    assert share[1] < 1e-6 < 1 - 1e-6 < share[2]
    assert Beta(torch.ones(3, 1), torch.ones(3, 1)).entropy().tolist() == [0, 0, 0]


@pytest.mark.parametrize("sure", [0.0, 100.0, 1000.0, 5000.0])
def test_beta_in_single_precision_is_that_of_double(sure: float) -> None:
    """However sure the policy is, whose ratios and KL are small differences of large gammas."""
    torch.manual_seed(0)
    head: Any = head_for(BOX, "beta")
    outputs, other = sure * (1 + 0.01 * torch.rand(2, 500, 4)) + 3 * torch.randn(2, 500, 4)
    action = head(outputs).sample(head.noise(500, device=CPU))
    ours = [head(outputs).logp(action), head(outputs).entropy(), head(outputs).kl(head(other))]
    outputs, other, action = outputs.double(), other.double(), action.double()
    wanted = [head(outputs).logp(action), head(outputs).entropy(), head(outputs).kl(head(other))]
    for single, double in zip(ours, wanted, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=3e-5)
        assert single.dtype == torch.float32


# Units, deviations.


@pytest.mark.parametrize("kind", ["squashed", "beta"])
def test_actions_stay_inside_and_reach_the_bounds(kind: Any) -> None:
    head: Any = head_for(BOX, kind)
    got = head.to_env(np.array([[-1e4, 1e4], [0, 0], [40, -40]], np.float32))
    np.testing.assert_array_equal(got, [[-1, 0.5], [1, 0.25], [3, 0]])
    half = {"squashed": np.arctanh(0.5), "beta": np.log(3)}[kind]  # three quarters of the way
    np.testing.assert_allclose(head.to_env(np.full((1, 2), half)), [[2, 0.375]])
    integers: Any = head_for(spaces.Box(0, 255, (2, 1), np.uint8), kind)
    np.testing.assert_array_equal(integers.to_env(np.array([[-30.0, half]])), [[[0], [191]]])


@pytest.mark.parametrize("kind", ["gaussian", "squashed"])
def test_the_network_gives_the_deviation(kind: Any) -> None:
    head: Any = head_for(BOX, kind, state_std=True, log_std_init=-1.0)
    assert head.outputs == 4
    outputs = torch.tensor([[0.3, -0.4, 0.0, 0.5], [0.0, 0.0, 3.5, -20.0]], requires_grad=True)
    one = head(outputs)
    base = one.base if kind == "squashed" else one
    assert base.mean.tolist() == outputs[:, :2].tolist()
    assert base.log_std.tolist() == [[-1.0, -0.5], [LOG_STD[1], LOG_STD[0]]]
    gradient = torch.autograd.grad(one.entropy().sum(), outputs)[0]
    assert (gradient[0, 2:] != 0).all()
    assert (gradient[1, 2:] == 0).all()


def test_a_deviation_of_the_state_is_one_of_its_own() -> None:
    """With the same deviations everywhere, both heads are one distribution."""
    torch.manual_seed(0)
    mean = torch.randn(5, 2)
    plain, stateful = head_for(BOX, log_std_init=-0.7), head_for(BOX, state_std=True, log_std_init=-0.7)
    one, other = plain(mean), stateful(torch.cat([mean, torch.zeros(5, 2)], -1))
    action = one.sample(torch.randn(5, 2))
    torch.testing.assert_close(one.logp(action), other.logp(action))
    torch.testing.assert_close(one.entropy(), other.entropy())
