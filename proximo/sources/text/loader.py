"""An endless stream over examples, whose place in it is part of a run's state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from proximo.errors import ConfigError

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
        """The next `count` examples."""
        drawn: list[T] = []
        while len(drawn) < count:
            at = int(self.position)
            places = self.order(int(self.epoch))[at : at + count - len(drawn)]
            drawn += [self.examples[place] for place in places]
            over = at + len(places) == len(self.examples)
            self.epoch += over
            self.position.fill_(0 if over else at + len(places))
        return drawn

    def order(self, epoch: int) -> np.ndarray:
        """The examples' indices in the order of an epoch."""
        if self._order[0] != epoch:
            self._order = epoch, permutation(len(self.examples), self.seed, ORDER, epoch)
        return self._order[1]

    def state_tensors(self) -> dict[str, Tensor]:
        return {"epoch": self.epoch, "position": self.position}


def held_out(rows: Sequence[T], share: float, seed: int) -> tuple[list[T], list[T]]:
    """Rows to learn from, and a share of them that is not; both in order, chosen by (seed, number of rows) alone.

    Take it of a data set's rows, before a conversation becomes several texts. Raises ConfigError where the share leaves
    one of the two without rows.
    """
    count = round(share * len(rows))
    if not 0 < count < len(rows):
        raise ConfigError(f"{share} of {len(rows)} rows is {count}: some must be held out and some be learned from")
    held = set(permutation(len(rows), seed, HELD, 0)[:count].tolist())
    parts = [[row for i, row in enumerate(rows) if (i in held) is wanted] for wanted in (False, True)]
    return parts[0], parts[1]


def permutation(count: int, seed: int, stream: int, position: int) -> np.ndarray:
    """An order of `count` things, independent for each (seed, stream, position)."""
    return np.random.default_rng([seed, stream, position]).permutation(count)
