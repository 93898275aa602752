"""Returns and lengths of finished episodes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from proximo import ranks

WINDOW = 100  # episodes that a reported mean looks back on


class Episodes:
    """Counts the episodes that end, and remembers the last 100 of them."""

    def __init__(self) -> None:
        self.returns = torch.zeros(WINDOW, dtype=torch.float64)
        self.lengths = torch.zeros(WINDOW, dtype=torch.int64)
        self.count = torch.zeros((), dtype=torch.int64)
        self.restart(0)

    def restart(self, lanes: int) -> None:
        """Forget the open episodes."""
        self.open_return, self.open_length = np.zeros(lanes), np.zeros(lanes, int)

    def add_everyones(self, *columns: np.ndarray) -> None:
        """`add` what all ranks have, lane beside lane, of what this one has."""
        count = columns[0].shape[1] * ranks.size()
        self.add(*(ranks.gathered(torch.from_numpy(column), count, 1).numpy() for column in columns))

    def add(self, reward: np.ndarray, mask: np.ndarray, ended: np.ndarray) -> None:
        """Take in rewards (zero in dead rows), live rows and ends, [T, N] each."""
        steps, lanes = ended.shape
        first = np.ones((lanes, steps), bool)  # of an episode, or of what is left of one
        first[:, 1:] = ended[:-1].T
        begins = np.flatnonzero(first)
        lasts = np.append(begins[1:], lanes * steps) - 1
        returns = np.add.reduceat(reward.T.ravel(), begins, dtype=np.float64)
        lengths = np.add.reduceat(mask.T.ravel(), begins, dtype=int)
        carried = np.flatnonzero(begins % steps == 0)  # one in every lane
        returns[carried] += self.open_return
        lengths[carried] += self.open_length

        over, open_ones = ended.T.ravel()[lasts], np.append(carried[1:], len(begins)) - 1
        self.open_return = np.where(over, 0, returns)[open_ones]
        self.open_length = np.where(over, 0, lengths)[open_ones]
        done = np.flatnonzero(over)
        done = done[np.lexsort((lasts[done] // steps, lasts[done] % steps))][-WINDOW:]  # as time went
        count = int(self.count) + int(over.sum())
        places = np.arange(count - len(done), count) % WINDOW
        self.returns.numpy()[places], self.lengths.numpy()[places] = returns[done], lengths[done]
        self.count.fill_(count)

    def metrics(self) -> dict[str, float | int | None]:
        """episodes so far; return_mean and length_mean of the last 100, None before the first."""
        count = int(self.count)
        seen = slice(0, min(count, WINDOW))
        returns = float(self.returns[seen].mean()) if count else None
        lengths = float(self.lengths[seen].double().mean()) if count else None
        return {"episodes": count, "return_mean": returns, "length_mean": lengths}

    def state_tensors(self) -> dict[str, Tensor]:
        return {"returns": self.returns, "lengths": self.lengths, "count": self.count}
