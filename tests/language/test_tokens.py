"""Collections of completions: what a lane says of itself, and groups that are exchanged for others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from proximo.batch import Batch
from proximo.models.language.policy import LanguagePolicy
from proximo.sources.generation import Completions
from proximo.sources.tokens import after, batch_of, exchanged, repetition, scored_alike
from tests.language import tiny

EOS, PAD = 2, 0


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(prompts: int, width: int, steps: int, group: int, seed: int, policy: LanguagePolicy) -> Batch:
    """Random completions of random prompts, with the policy's log-probabilities of them."""
    torch.manual_seed(seed)
    token, live = torch.randint(3, 40, (prompts, width)), torch.ones(prompts, width, dtype=torch.bool)
    token[0, :2], live[0, :2] = PAD, False
    length = torch.randint(1, steps, (prompts * group,))
    length[0] = steps - 1  # the longest is shorter than there was room for
    mask = torch.arange(steps).unsqueeze(1) < length
    drawn = torch.where(mask, torch.randint(3, 40, mask.shape), PAD)
    drawn[length[1] - 1, 1] = EOS
    batch = batch_of(token, live, Completions(drawn, mask, torch.zeros(mask.shape)), group, (EOS,))
    with torch.no_grad():
        logp = torch.where(batch.mask, policy.evaluate(batch).logp, 0)
    return batch.replace(logp=logp, reward=torch.zeros_like(logp))


def test_a_batch_says_what_was_seen_and_what_followed() -> None:
    token = torch.tensor([[PAD, 5, 6], [7, 8, 9]])
    live = token != PAD
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    drawn = torch.tensor([[10, EOS, 11, EOS], [12, PAD, EOS, PAD], [PAD] * 4])
    batch = batch_of(token, live, Completions(drawn, mask, torch.zeros(3, 4)), 2, (EOS,))
    assert batch.observation["token"].T.tolist() == [[6, 10], [6, EOS], [9, 11], [9, EOS]]
    assert batch.observation["position"].T.tolist() == [[1, 2], [1, 1], [2, 3], [2, 2]]
    assert batch.action.T.tolist() == [[10, 12], [EOS, PAD], [11, EOS], [EOS, PAD]]
    assert batch.terminated.T.tolist() == [[False, True], [True, False], [False, True], [True, False]]
    assert batch.ended.any(0).tolist() == [False, True, True, True]  # the first was cut: no end is made up
    assert batch.group[0].tolist() == [0, 0, 1, 1]
    assert batch.memory["token"][0].tolist() == [[PAD, 5], [PAD, 5], [7, 8], [7, 8]]
    value = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    assert after(value, batch.terminated).T.tolist() == [[5, 0], [0, 0], [7, 0], [0, 0]]


def test_groups_that_scored_alike_are_exchanged_and_nothing_else_changes() -> None:
    policy = LanguagePolicy(tiny.llama())
    first, second = made(4, 5, 7, 2, 1, policy), made(2, 8, 10, 2, 2, policy)
    score = torch.tensor([3.0, 3, 1, 0, 0, 0, 0, 1])
    first = first.replace(reward=torch.where(first.terminated, score, 0))
    gone = scored_alike(first, 2)
    assert gone.tolist() == [True, False, True, False]
    batch = exchanged(first, gone, second, 2, PAD)
    assert batch.mask.shape == (9, 8)
    assert batch.group[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for lanes, source, theirs in (([2, 3, 6, 7], first, [2, 3, 6, 7]), ([0, 1, 4, 5], second, [0, 1, 2, 3])):
        for name in ("action", "logp", "reward", "terminated", "ended"):
            ours, other = getattr(batch, name)[:, lanes], getattr(source, name)[:, theirs]
            live = batch.mask[:, lanes]
            assert torch.equal(ours[live], other[source.mask[:, theirs]]), name
            assert name == "action" or not ours[~live].any(), name
    with torch.no_grad():  # prompts are where they were: the policy finds the tokens as likely as before
        logp = torch.where(batch.mask, policy.evaluate(batch).logp, 0)
    torch.testing.assert_close(logp, batch.logp, atol=1e-6, rtol=0)


def test_repetition_is_of_pairs_of_tokens() -> None:
    policy = LanguagePolicy(tiny.llama())
    batch = made(1, 4, 9, 2, 0, policy)
    again = batch.replace(action=torch.tensor([[4, 5] * 4] * 2).T, mask=torch.ones(8, 2, dtype=torch.bool))
    assert repetition(again) == 1
    assert repetition(again.replace(action=torch.arange(8).unsqueeze(1).expand(8, 2))) == 0
