"""An endless stream over examples, whose place in it is part of a run's state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from proximo.errors import CheckpointError, ConfigError
from proximo.sources.text.reading import Table
from proximo.sources.text.streaming import at

T = TypeVar("T")
ORDER, HELD = 101, 102  # independent streams of random numbers


class Loader(Generic[T]):
    """Draws from examples (prompts, texts, pairs, or whole lanes of packed ones), in a new order every epoch.

    The order follows from (seed, epoch) alone. An epoch is no boundary of a draw: what the last of an epoch lacks comes
    from the next one, so that every example is drawn exactly once an epoch. State are two counters.
    """

    def __init__(self, examples: Sequence[T], seed: int) -> None:
        """Raises ConfigError where there is nothing to draw."""
        if not len(examples):
            raise ConfigError("there are no examples to draw from")
        self.examples, self.seed = examples, seed
        self.epoch, self.position = torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64)
        self._order: tuple[int, np.ndarray] = -1, np.empty(0, int)

    def draw(self, count: int) -> list[T]:
        """The next `count` examples; CheckpointError where the state that was put into this is no place in them."""
        if self.epoch < 0 or not 0 <= self.position < len(self.examples):
            place = f"{int(self.position)} of epoch {int(self.epoch)}"
            raise CheckpointError(f"the place in the data, {place}, is none: there are {len(self.examples)} examples")
        drawn: list[T] = []
        while len(drawn) < count:
            begin = int(self.position)
            places = self.order(int(self.epoch))[begin : begin + count - len(drawn)]
            drawn += at(self.examples, places)
            over = begin + len(places) == len(self.examples)
            self.epoch += over
            self.position.fill_(0 if over else begin + len(places))
        return drawn

    def order(self, epoch: int) -> np.ndarray:
        """The examples' indices in the order of an epoch."""
        if self._order[0] != epoch:
            self._order = epoch, permutation(len(self.examples), self.seed, ORDER, epoch)
        return self._order[1]

    def state_tensors(self) -> dict[str, Tensor]:
        return {"epoch": self.epoch, "position": self.position}


def held_out(table: Table, share: float, seed: int) -> tuple[Table, Table]:
    """Rows to learn from, and a share of them that is not; see `parted`."""
    learned, held = parted(len(table.rows), share, seed)
    return _some(table, learned), _some(table, held)


def parted(rows: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows to learn from, and a share of them that is not; both in order, chosen by (seed, rows) alone.

    Whole rows, so that no conversation is in both. Raises ConfigError where one of the two would have no rows.
    """
    count = round(share * rows)
    if not 0 < count < rows:
        raise ConfigError(f"{share} of {rows} rows are {count}: some must be held out and some be learned from")
    order = permutation(rows, seed, HELD, 0)
    return np.sort(order[count:]), np.sort(order[:count])


def _some(table: Table, places: np.ndarray) -> Table:
    return Table(at(table.rows, places), at(table.places, places))


def permutation(count: int, seed: int, stream: int, position: int) -> np.ndarray:
    """An order of `count` things, independent for each (seed, stream, position)."""
    return np.random.default_rng([seed, stream, position]).permutation(count)
