"""Every example once an epoch, in an order that follows from seed and epoch; a resumed stream goes on in the middle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proximo.errors import ConfigError
from proximo.sources.text.loader import Loader, held_out
from proximo.sources.text.reading import read
from proximo.state import live_tensors, restore


@given(st.integers(1, 13), st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(0, 5))
def test_every_example_counts_once_an_epoch_however_it_is_drawn(size: int, counts: list[int], seed: int) -> None:
    loader = Loader(range(size), seed)
    stream = [each for count in counts for each in loader.draw(count)]
    assert len(stream) == sum(counts)
    for first in range(0, len(stream), size):
        epoch = stream[first : first + size]
        assert len(set(epoch)) == len(epoch)
        assert epoch == loader.order(first // size).tolist()[: len(epoch)]
    assert (int(loader.epoch), int(loader.position)) == divmod(sum(counts), size)
    assert stream == Loader(range(size), seed).draw(len(stream))


@given(st.integers(1, 13), st.integers(0, 40), st.integers(1, 8))
def test_a_resumed_stream_goes_on_in_the_middle_of_an_epoch(size: int, before: int, count: int) -> None:
    whole, resumed = Loader(range(size), 3), Loader(range(size), 3)
    whole.draw(before)
    saved = {name: tensor.clone() for name, tensor in live_tensors(loader=whole).items()}
    resumed.draw(5)  # whatever it did before
    restore(live_tensors(loader=resumed), saved, "a checkpoint")
    assert [whole.draw(count) for _ in range(6)] == [resumed.draw(count) for _ in range(6)]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    torch.manual_seed(0)
    orders = {tuple(Loader(range(50), seed).order(epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert torch.equal(
        torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(0))
    )  # nobody else's numbers


def test_what_is_held_out_is_never_learned_from() -> None:
    table = read([{"text": str(i)} for i in range(100)])
    learned, held = held_out(table, 0.1, seed=1)
    assert (len(learned.rows), len(held.rows)) == (90, 10)
    assert sorted(map(str, [*learned.rows, *held.rows])) == sorted(map(str, table.rows))
    for part in (learned, held):
        numbers = [int(row["text"]) for row in part.rows]
        assert numbers == sorted(numbers)
        assert part.places == [f"the data, row {i + 1}" for i in numbers]
    assert held_out(table, 0.1, 1)[1] == held != held_out(table, 0.1, 2)[1]
    for share in (0.0, 0.001, 1.0, 2.0):
        with pytest.raises(ConfigError, match="some must be held out"):
            held_out(table, share, 0)


def test_nothing_to_draw_from() -> None:
    with pytest.raises(ConfigError, match="no examples"):
        Loader([], 0)
