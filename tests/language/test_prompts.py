"""Prompts that several lanes share are read once while learning too: with the same numbers, and the same gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from proximo.batch import Batch
from proximo.decoder import transformer
from proximo.decoder.transformer import hidden, read
from proximo.models.language import reading
from proximo.models.language.policy import LanguagePolicy
from proximo.models.language.reward import RewardModel
from proximo.models.language.rows import rows_after, rows_of, together
from proximo.sources.generation import decode
from proximo.sources.sampling import Sampling
from proximo.sources.text.padding import completions, pairs
from proximo.sources.tokens import batch_of
from tests.language.tiny import gpt2, llama

SAMPLING = Sampling(13, eos=(2,), pad=0)


def sampled(model: object, prompts: int = 5, width: int = 9, group: int = 3) -> Batch:
    """Completions of prompts of different lengths, by our own decoder."""
    torch.manual_seed(3)
    live = torch.arange(width) >= torch.arange(prompts)[:, None]
    token = torch.randint(3, 44, (prompts, width)).where(live, 0)
    made = decode(model, token, live, SAMPLING, group)  # pyright: ignore[reportArgumentType]
    return batch_of(token, live, made, group, SAMPLING.eos)


def gradients(loss: Tensor, model: torch.nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True))


@pytest.mark.parametrize("make", [gpt2, llama])
def test_the_learner_begins_with_a_ratio_of_exactly_one(make: object) -> None:
    model = make()  # pyright: ignore[reportCallIssue]
    policy, batch = LanguagePolicy(model), sampled(model)
    assert torch.equal(policy.evaluate(batch).logp[batch.mask], batch.logp[batch.mask])
    some = batch.part(torch.tensor([14, 3, 0, 4, 8]))  # in any order, groups of any size
    assert torch.equal(policy.evaluate(some).logp[some.mask], some.logp[some.mask])


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_shared_prompt_has_the_gradients_of_prompts_read_apart(make: object, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()  # pyright: ignore[reportCallIssue]
    batch, found = sampled(model), []
    weight = torch.randn(batch.mask.shape)
    rows, steps = rows_of(batch), len(batch.mask)
    calls = []
    monkeypatch.setattr(reading, "continued", lambda *a: calls.append(1) or transformer.continued(*a))
    for shared in (True, False):
        decoder, prompt = read(model), rows.token.shape[1] - steps + 1
        if shared:
            x = reading.last_layer(decoder, rows, steps, prompt)
        else:
            x = hidden(decoder, rows.token, rows.position, rows.attention(), split=prompt)[:, -steps:]
        logp = decoder.head(x).log_softmax(-1).gather(-1, batch.action.T[..., None])[..., 0].T
        found.append(gradients(torch.where(batch.mask, weight * logp, 0).sum(), model))
    assert calls == [1]
    for ours, theirs in zip(*found, strict=True):
        assert float((ours - theirs).abs().max()) < 1e-5 * max(1.0, float(theirs.abs().max()))


def test_the_sides_of_a_pair_share_their_prompt_in_a_reward_model() -> None:
    judge = RewardModel(llama())
    prompts, chosen, rejected = [[5, 6, 7], [8]], [[9, 10], [11, 2]], [[12, 2], [13, 14, 15, 2]]
    batch = pairs(prompts, chosen, rejected, 0)
    value = judge.evaluate(batch).value
    for n, prompt in enumerate(prompts):
        for side, answers in enumerate((chosen, rejected)):
            text = torch.tensor([prompt + answers[n]])
            expected = judge.head(judge.trunk(text).last_hidden_state)[0, len(prompt) :, 0]
            assert torch.allclose(value[: len(answers[n]), n, side], expected, atol=1e-5)


def test_a_reward_model_that_our_decoder_does_not_know_goes_by_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = RewardModel(gpt2())
    batch = completions([[5, 6, 7], [8], [8]], [[9, 10], [11, 2], [12, 13, 2]], 0)
    rows = rows_after(batch)
    known = judge.seen(rows, 3)
    monkeypatch.setattr("proximo.models.language.reward.knows", lambda model: False)
    live = batch.mask.T[..., None]
    assert torch.allclose(known.where(live, 0), judge.seen(rows, 3).where(live, 0), atol=1e-5)


def test_pieces_hold_what_a_cache_holds() -> None:
    ids = [[7] * 17] * 64
    assert together(completions(ids, [[7] * 48] * 64, 0)) == 128  # of 64 tokens each
    assert together(completions(ids, [[7] * 49] * 64, 0)) == 64
    assert together(pairs(ids, [[7] * 48] * 64, [[7] * 48] * 64, 0)) == 64
    assert together(completions(ids, [[7] * 10_000] * 64, 0)) == 1
