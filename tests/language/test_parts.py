"""The parts of language's algorithms, by hand: groups, whitening, corrections, critics, controllers, AdamW."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from proximo.advantages import length_adaptive, sampled_elsewhere
from proximo.batch import Batch
from proximo.coefficients import proportional
from proximo.critics import open_entropy, own_value_error, split, weigh
from proximo.errors import ConfigError
from proximo.groups import centred, drop_equal, group_relative, leave_one_out
from proximo.models.distributions.discrete import Categorical
from proximo.objectives import clip, dual_clip, surrogate
from proximo.reduce import live_lanes, whiten, with_totals
from proximo.sequences import cispo, sequence_clip
from proximo.updaters.adam import Adam
from proximo.updaters.sgd import sgd
from tests.language.enumerable import Opinion


def scored(score: list[float], group: list[int], lengths: list[int]) -> Batch:
    """Lanes of some length whose reward lies in their last row."""
    row = torch.arange(max(lengths)).unsqueeze(1)
    length = torch.tensor(lengths)
    last = row == length - 1
    reward = torch.where(last, torch.tensor(score, dtype=torch.float64), 0.0)
    return Batch(mask=row < length, terminated=last, reward=reward, group=torch.tensor(group).expand_as(last))


LANES = scored([1.0, 5.0, 3.0, 2.0, 6.0], group=[7, 2, 7, 2, 7], lengths=[2, 1, 3, 3, 1])


def test_group_advantages_by_hand() -> None:
    """Group 7 scored 1, 3, 6: mean 10/3; group 2 scored 5, 2."""
    plain = group_relative(LANES, std=False).advantage
    torch.testing.assert_close(plain[0], torch.tensor([-7 / 3, 1.5, -1 / 3, -1.5, 8 / 3], dtype=torch.float64))
    assert torch.equal(plain != 0, LANES.mask)
    scaled = group_relative(LANES).advantage[0]
    std = torch.tensor([1.0, 3.0, 6.0]).double().std()
    assert scaled[4].item() == pytest.approx((8 / 3 / (std + 1e-4)).item(), abs=1e-12)
    others = leave_one_out(LANES).advantage[0]
    torch.testing.assert_close(others, torch.tensor([1 - 4.5, 3.0, 3 - 3.5, -3.0, 6 - 2.0], dtype=torch.float64))
    shifted = centred(LANES)
    torch.testing.assert_close(shifted.reward.sum(0), plain[0])
    assert torch.equal(shifted.reward != 0, LANES.terminated)


def test_groups_do_not_see_dead_lanes() -> None:
    dead = torch.tensor([False, False, True, False, False])
    fewer = group_relative(LANES.replace(mask=LANES.mask & ~dead), std=False).advantage[0]
    torch.testing.assert_close(fewer, torch.tensor([-2.5, 1.5, 0, -1.5, 2.5], dtype=torch.float64))
    with pytest.raises(ConfigError, match="prompt 2"):
        group_relative(LANES.replace(mask=LANES.mask & ~torch.tensor([False, True, False, False, False])))


def test_equal_groups_die_and_no_others() -> None:
    batch = scored([0.1, 5.0, 0.1, 2.0, 0.1], group=[7, 2, 7, 2, 7], lengths=[2, 1, 3, 3, 1])
    assert live_lanes(drop_equal(batch).mask).tolist() == [False, True, False, True, False]
    assert live_lanes(drop_equal(LANES).mask).all()


def test_whitening_shifts_when_it_is_told_to() -> None:
    """Trap 1: the flag the wrong way round leaves advantages where they were."""
    x, mask = torch.tensor([1.0, 2.0, 6.0, torch.nan]).double(), torch.tensor([True, True, True, False])
    white, scaled = whiten(x, mask)[:3], whiten(x, mask, shift=False)[:3]
    assert white.mean().item() == pytest.approx(0, abs=1e-12)
    assert scaled.mean().item() == pytest.approx(3, abs=1e-12)
    for each in (white, scaled):
        assert each.var(correction=0).item() == pytest.approx(1, abs=1e-7)
    assert whiten(x, mask)[3] == 0
    assert whiten(torch.ones(3), torch.ones(3).bool()).abs().max() == 0


def test_lambda_grows_with_length() -> None:
    batch = LANES.replace(mask=torch.arange(80).unsqueeze(1) < torch.tensor([80, 40, 20, 10, 1]))
    torch.testing.assert_close(length_adaptive(batch, 0.05), torch.tensor([0.75, 0.5, 0.0, 0.0, 0.0]).double())


def test_corrections_for_the_sampling_engine_by_hand() -> None:
    weight = torch.tensor([[0.1, 0.5, 1.0, 4.0, 9.0]]).double()
    one = torch.ones_like(weight)
    batch = Batch(mask=one.bool(), logp=weight.log(), sampler_logp=0 * one, advantage=-one)
    capped = sampled_elsewhere(batch, 3.0).advantage
    torch.testing.assert_close(capped, -torch.tensor([[0.1, 0.5, 1.0, 3.0, 3.0]]).double())
    iced = sampled_elsewhere(batch, 5.0, 0.4).advantage
    torch.testing.assert_close(iced, -torch.tensor([[0, 0.5, 1.0, 4.0, 0]]).double())


def test_the_kl_controller_by_hand() -> None:
    assert proportional(0.15, 6.6, 6.0, 64, 10_000) == pytest.approx(0.15 * (1 + 0.1 * 64 / 10_000))
    assert proportional(0.15, 60.0, 6.0, 5_000, 10_000) == pytest.approx(0.15 * 1.1)
    assert proportional(0.15, 0.0, 6.0, 5_000, 10_000) == pytest.approx(0.15 * 0.9)


def opinion(logp: Tensor, values: Tensor | None = None) -> Opinion:
    values = torch.zeros(*logp.shape, 2).double() if values is None else values
    return Opinion(logp, values.mean(-1), Categorical.from_logits(torch.zeros(*logp.shape, 4).double()), values)


def test_ratios_of_sequences_by_hand() -> None:
    """Two lanes, of two tokens and one; the second's ratio is far outside."""
    mask = torch.tensor([[True, True], [True, False]])
    log = torch.tensor([[0.2, 1.0], [0.4, 9.0]]).double().requires_grad_()
    batch = Batch(mask=mask, logp=torch.zeros(2, 2).double(), advantage=torch.tensor([[2.0, 1.0], [2.0, 0.0]]).double())
    loss, seen = sequence_clip(0.5)(opinion(log), batch)
    root = torch.tensor(0.3).exp().item()
    assert loss.item() == pytest.approx(-(2 * root + 1.5) / 2, abs=1e-6)
    assert seen["clip_fraction"] == 0.5
    wanted = torch.tensor([[-root / 2, 0], [-root / 2, 0]]).double()
    torch.testing.assert_close(torch.autograd.grad(loss, log)[0], wanted)
    whole = sequence_clip(0.9, mean=False)(opinion(log), batch)[0]
    assert whole.item() == pytest.approx(-(2 * torch.tensor(0.6).exp().item() + 1.9) / 2, abs=1e-6)


def test_cispo_keeps_the_gradient_that_clipping_cuts() -> None:
    log = torch.tensor([0.1, 2.0]).double().requires_grad_()
    batch = Batch(mask=torch.ones(2).bool(), logp=torch.zeros(2).double(), advantage=torch.ones(2).double())
    kept = torch.autograd.grad(cispo(3.0)(opinion(log), batch)[0], log)[0]
    torch.testing.assert_close(kept, -torch.tensor([torch.tensor(0.1).exp(), 3.0]).double() / 2, atol=1e-6, rtol=0)
    assert torch.autograd.grad(clip(0.2)(opinion(log), batch)[0], log)[0][1] == 0


def test_terms_of_pieces_add_up_to_that_of_the_whole() -> None:
    """And their diagnostics. The mean of the pieces' means is another number."""
    mask = torch.tensor([[1, 1, 1, 0, 1], [0, 1, 1, 0, 1], [0, 0, 1, 0, 0]]).bool()
    log, a = torch.randn(2, 3, 5, dtype=torch.float64)
    batch = Batch(mask=mask, logp=torch.zeros(3, 5).double(), advantage=a, log=log)
    for term in (surrogate(), clip(0.2), dual_clip(0.2, 3.0), sequence_clip(0.2), cispo(1.5)):
        loss, seen = term(opinion(log), batch)
        parts = torch.arange(5).split(2)
        pieces = [with_totals(batch).part(part) for part in parts]
        found = [term(opinion(piece.log), piece) for piece in pieces]
        assert sum(each.item() for each, _ in found) == pytest.approx(loss.item(), abs=1e-12)
        for name, value in seen.items():
            assert sum(more[name].item() for _, more in found) == pytest.approx(value.item(), abs=1e-12)
        alone = [term(opinion(log[:, part]), batch.part(part))[0] for part in parts]
        assert abs(torch.stack(alone).mean() - loss) > 1e-3


def test_critics_share_groups_and_their_disagreement_weighs_states() -> None:
    spread = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0, 9.0], [9.0, 9.0, 2.5, 3.5, 9.0]]).double()
    values = torch.stack([spread, -spread], -1)
    batch = split(LANES.replace(values=values, advantage=LANES.mask.double()))
    assert batch.critic[0].tolist() == [0, 0, 1, 1, 0]
    weighed = weigh(batch, agree=0.2, differ=0.3)  # live: 0 1 2 3 4 5 7 8 2.5 3.5
    assert (LANES.mask & (weighed.advantage == 0)).nonzero().tolist() == [[0, 0], [0, 1]]
    assert (LANES.mask & (weighed.open == 0)).nonzero().tolist() == [[1, 2], [1, 3]]
    assert torch.equal(weigh(batch, 0.0, 0.0).advantage, batch.advantage)
    assert weigh(batch, 0.0, 0.0).open.min() == 1

    learning = values.clone().requires_grad_()
    batch = weighed.replace(returns=torch.ones(3, 5).double(), value=torch.zeros(3, 5).double())
    gradient = torch.autograd.grad(own_value_error()(opinion(spread, learning), batch)[0], learning)[0]
    own = nn.functional.one_hot(batch.critic, 2).bool() & LANES.mask.unsqueeze(-1)
    assert torch.equal(gradient != 0, own & (learning != 1))
    exploring = open_entropy()(opinion(spread, values), batch)[0]
    assert exploring.item() == pytest.approx(0.8 * torch.tensor(4.0).log().item(), abs=1e-6)


class Line(nn.Module):
    """Parameters that are told their gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(2, 3).double()), nn.Parameter(torch.ones(3).double())


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_torchs(decay: float) -> None:
    mine, theirs = Line(), Line()
    adam = Adam(mine, lr=0.01, weight_decay=decay)
    other = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=decay)
    for _ in range(5):
        gradient = torch.randn(9, dtype=torch.float64)
        with torch.no_grad():
            adam.descend(gradient, adam.state)
        theirs.weight.grad, theirs.bias.grad = gradient[:6].view(2, 3), gradient[6:]
        other.step()
    for one, two in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_epsilon_hat_by_hand() -> None:
    """θ − lr √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m / (√v + ε̂), which for t = 1 is a step of lr · g / (g + ε̂ / √(1 − β₂))."""
    for hat, epsilon in ((True, 0.1 / (1 - 0.999) ** 0.5), (False, 0.1)):
        line = Line()
        adam = Adam(line, lr=0.01, eps=0.1, epsilon_hat=hat)
        with torch.no_grad():
            adam.descend(torch.full((9,), 2.0, dtype=torch.float64), adam.state)
        assert line.bias[0].item() == pytest.approx(1 - 0.01 * 2 / (2 + epsilon), abs=1e-12)


class Steps(nn.Module):
    """A policy without memory: a logit for each of three observations."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(3, 4).double())

    def evaluate(self, batch: Batch) -> Opinion:
        distribution = Categorical.from_logits(self.logits[batch.observation])
        logp = distribution.logp(batch.action)
        return Opinion(logp, torch.zeros_like(logp), distribution, torch.zeros_like(logp))


def test_micro_batches_of_steps_change_nothing_either() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = Batch(
        observation=torch.randint(3, (6, 4), generator=generator), action=torch.randint(4, (6, 4), generator=generator),
        mask=torch.rand(6, 4, generator=generator) > 0.3, logp=torch.zeros(6, 4).double() - 1.4,
        advantage=torch.randn(6, 4, generator=generator, dtype=torch.float64),
    )  # fmt: skip
    ends = []
    for micro in (None, 5):
        policy = Steps()
        torch.manual_seed(0)
        sgd(policy, Adam(policy, lr=0.1), clip(0.2), batch, 2, 2, 0.5, micro=micro)  # pyright: ignore
        ends.append(policy.logits.detach())
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12)
    with pytest.raises(ConfigError, match="24 steps"):
        sgd(policy, Adam(policy), clip(0.2), batch, 1, 5, 0.5)  # pyright: ignore
