"""Batches hold what a policy saw before each token it chose, whichever way the texts lie in them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from proximo.batch import Batch
from proximo.errors import ConfigError
from proximo.sources.text.padding import completions, fitted, left, packed, pairs
from tests.language.tiny import gpt2, llama

PAD, EOS = 0, 2
Learned = Counter[tuple[tuple[int, ...], tuple[int, ...], int]]  # tokens before, their positions, the token chosen
ids = st.lists(st.integers(0, 9), min_size=1, max_size=5)  # pad and EOS among them: neither may matter
texts = st.lists(st.tuples(ids, ids), min_size=1, max_size=7)


def wanted(some: list[tuple[list[int], list[int]]]) -> Learned:
    """What is learned of texts, by going through them."""
    found: Learned = Counter()
    for prompt, answer in some:
        for t, token in enumerate(answer):
            before = (*prompt, *answer[:t])
            found[before, tuple(range(len(before))), token] += 1
    return found


def columns(batch: Batch) -> list[Tensor]:
    seen, memory = batch.observation, batch.memory
    return [seen["token"], seen["position"], batch.action, batch.mask, memory["token"][0], memory["live"][0]]


def learned(batch: Batch) -> Learned:
    """What is learned from a batch: of each row of `mask`, all that a policy may look at there."""
    token, position, action, mask, before, live = (x.tolist() for x in columns(batch))
    found: Learned = Counter()
    for t, n in batch.mask.nonzero().tolist():
        assert mask[t][n]
        first = next((i for i in range(t, -1, -1) if position[i][n] == 0), 0)
        rows = range(first, t + 1)
        kept = [x for x, there in zip(before[n], live[n], strict=True) if there] if position[first][n] else []
        places = [*range(len(kept)), *(position[i][n] for i in rows)]
        found[(*kept, *(token[i][n] for i in rows)), tuple(places), action[t][n]] += 1
    return found


@given(texts)
def test_every_token_of_an_answer_is_learned_once_after_all_before_it(some: list[tuple[list[int], list[int]]]) -> None:
    prompts, answers = zip(*some, strict=True)
    batch = completions(prompts, answers, PAD)
    assert learned(batch) == wanted(some)
    assert batch.mask.sum(0).tolist() == [*map(len, answers)]
    last = [len(answer) - 1 for answer in answers]
    assert batch.terminated.nonzero().tolist() == sorted([t, n] for n, t in enumerate(last))
    assert not batch.truncated.any()
    assert batch.memory["token"].shape == (1, len(some), max(map(len, prompts)) - 1)


@given(texts, st.integers(9, 24))
def test_packed_rows_learn_the_same_tokens(some: list[tuple[list[int], list[int]]], length: int) -> None:
    lanes = fitted([len(prompt) + len(answer) - 1 for prompt, answer in some], length)
    batch = packed([[some[i] for i in lane] for lane in lanes], length, PAD)
    assert sorted(i for lane in lanes for i in lane) == list(range(len(some)))
    assert batch.mask.shape == (length, len(lanes))
    assert learned(batch) == wanted(some) == learned(completions(*zip(*some, strict=True), PAD))
    assert int(batch.terminated.sum()) == len(some)
    assert bool((batch.mask | ~batch.terminated).all())  # every text ends where its last token was chosen


@given(st.lists(st.tuples(ids, ids, ids), min_size=1, max_size=5))
def test_pairs_hold_both_sides_of_one_lane(some: list[tuple[list[int], list[int], list[int]]]) -> None:
    batch = pairs(*zip(*some, strict=True), PAD)
    assert batch.units().mask.shape[1] == len(some)
    for i in range(2):
        memory = {name: x[..., i] for name, x in batch.memory.items()}
        observation = {name: x[..., i] for name, x in batch.observation.items()}
        side = Batch(observation=observation, action=batch.action[..., i], mask=batch.mask[..., i], memory=memory)
        assert learned(side) == wanted([(each[0], each[1 + i]) for each in some])
    assert batch.memory["token"].shape == (1, len(some), max(len(each[0]) for each in some) - 1, 2)


def test_a_batch_by_hand() -> None:
    batch = completions([[5, 6, 7], [8]], [[3, EOS], [4, 9, EOS]], PAD)
    assert batch.observation["token"].T.tolist() == [[7, 3, PAD], [8, 4, 9]]
    assert batch.observation["position"].T.tolist() == [[2, 3, 3], [0, 1, 2]]
    assert batch.action.T.tolist() == [[3, EOS, PAD], [4, 9, EOS]]
    assert batch.mask.T.tolist() == [[True, True, False], [True, True, True]]
    assert batch.memory["token"].tolist() == [[[5, 6], [PAD, PAD]]]
    assert batch.memory["live"].tolist() == [[[True, True], [False, False]]]
    batch = packed([[([5, 6], [3, EOS]), ([7], [EOS])]], 6, PAD)
    assert batch.observation["token"].T.tolist() == [[5, 6, 3, 7, PAD, PAD]]
    assert batch.observation["position"].T.tolist() == [[0, 1, 2, 0, 0, 0]]
    assert batch.action.T.tolist() == [[6, 3, EOS, EOS, PAD, PAD]]
    assert batch.mask.T.tolist() == [[False, True, True, True, False, False]]
    assert batch.terminated.T.tolist() == [[False, False, True, True, False, False]]
    found = left([[1], [2, 3]], PAD)
    assert found["token"].tolist() == [[PAD, 1], [2, 3]]
    assert found["live"].tolist() == [[False, True], [True, True]]


def test_the_eos_that_ends_a_text_is_learned_where_eos_is_pad_too() -> None:
    """Trap 6, seen from here: masks are made of lengths, so a pad that is EOS changes nothing that is learned."""
    texts = [[5, 6], [7]], [[3, EOS], [EOS, 4, EOS]]
    assert learned(completions(*texts, EOS)) == learned(completions(*texts, PAD))
    batch = completions(*texts, EOS)
    ends = batch.action.gather(0, batch.mask.sum(0, keepdim=True) - 1)
    assert ends.tolist() == [[EOS, EOS]]


def test_the_mask_of_a_lane_ends_with_its_terminated_row() -> None:
    """Traps 7 and 8: values, rewards and tokens share one mask, and where a text was cut no EOS is put in."""
    batch = completions([[5]] * 2, [[3, 4], [3, EOS]], PAD)
    assert batch.mask.all()
    assert batch.action.T.tolist() == [[3, 4], [3, EOS]]
    assert batch.terminated.T.tolist() == [[False, True]] * 2


@given(texts, st.randoms())
def test_order_and_company_change_nothing(some: list[tuple[list[int], list[int]]], random: Any) -> None:
    shuffled = random.sample(some, len(some))
    assert learned(completions(*zip(*shuffled, strict=True), PAD)) == wanted(some)
    batch = completions(*zip(*some, strict=True), PAD)
    parts = [batch.units().part(torch.tensor([i])) for i in range(len(some))]
    assert sum(map(learned, parts), Counter()) == wanted(some)


def test_empty_prompts_and_answers() -> None:
    for broken in (([[1], []], [[1], [1]]), ([[1], [1]], [[1], []])):
        with pytest.raises(ConfigError, match="of sequence 1 has no tokens"):
            completions(*broken, PAD)
        with pytest.raises(ConfigError, match="in lane 0 has no tokens"):
            packed([list(zip(*broken, strict=True))], 9, PAD)
    with pytest.raises(ConfigError, match="more than its 2"):
        packed([[([1, 2], [3, 4])]], 2, PAD)


@given(st.lists(st.integers(1, 10), max_size=40))
def test_texts_fit_into_few_lanes(sizes: list[int]) -> None:
    lanes = fitted(sizes, 10)
    filled = [sum(sizes[i] for i in lane) for lane in lanes]
    assert sorted(i for lane in lanes for i in lane) == list(range(len(sizes)))
    assert all(0 < rows <= 10 for rows in filled)
    assert sum(rows <= 5 for rows in filled) <= 1  # else two of them were one
    assert lanes == fitted(list(sizes), 10)


def test_a_text_goes_where_the_least_room_is_left() -> None:
    assert fitted([3, 7, 6, 3, 1], 10) == [[1, 0], [2, 3, 4]]
    with pytest.raises(ConfigError, match="takes 11 rows"):
        fitted([11], 10)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_model_says_the_same_of_a_text_padded_packed_or_alone(make: Any) -> None:
    """The columns say enough: positions and who may look at whom, for relative and for learned positions."""
    model = make().double()
    some = [([5, 6, 7], [3, EOS]), ([8], [4, 9, PAD, EOS]), ([5, 5], [EOS])]
    alone = []
    for prompt, answer in some:
        logits = model(torch.tensor([[*prompt, *answer[:-1]]])).logits[0, len(prompt) - 1 :]
        alone.append(logits.log_softmax(-1)[range(len(answer)), answer])
    padded = completions(*zip(*some, strict=True), PAD)
    together = packed([[some[0], some[1]], [some[2]]], 8, PAD)
    for batch, order in ((padded, [0, 1, 2]), (together, [0, 1, 2])):
        said = logp(model, batch).T[batch.mask.T]
        torch.testing.assert_close(said, torch.cat([alone[i] for i in order]), rtol=1e-10, atol=1e-10)


def logp(model: Any, batch: Batch) -> Tensor:
    """[T, N] of the actions, where a row sees what is live before it and of its own text."""
    before, live = batch.memory["token"][0], batch.memory["live"][0]
    position = torch.cat([(live.cumsum(1) - 1).clamp(min=0), batch.observation["position"].T], 1)
    live = torch.cat([live, torch.ones_like(batch.action.T, dtype=torch.bool)], 1)
    text = ((position == 0) & live).cumsum(1)
    sees = (
        (text.unsqueeze(1) == text.unsqueeze(2))
        & live.unsqueeze(1)
        & torch.ones(live.shape[1], live.shape[1]).tril().bool()
    )
    sees |= torch.eye(live.shape[1]).bool()  # what fills a row sees itself: a softmax over nothing is NaN
    bias = torch.zeros(sees.shape, dtype=torch.float64).masked_fill(~sees, torch.finfo(torch.float64).min)
    tokens = torch.cat([before, batch.observation["token"].T], 1)
    logits = model(tokens, attention_mask=bias.unsqueeze(1), position_ids=position).logits[:, before.shape[1] :]
    return logits.log_softmax(-1).gather(-1, batch.action.T.unsqueeze(-1)).squeeze(-1).T
