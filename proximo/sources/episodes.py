"""Returns and lengths of finished episodes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

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

    def add(self, reward: np.ndarray, mask: np.ndarray, ended: np.ndarray) -> None:
        """Take in rewards (zero in dead rows), live rows and ends, [T, N] each."""
        begin = np.zeros(ended.shape[1], int)  # the first row of each lane's open episode
        returns, lengths, count = self.returns.numpy(), self.lengths.numpy(), int(self.count)
        for t, lane in np.argwhere(ended).tolist():
            rows = slice(begin[lane], t + 1)
            returns[count % WINDOW] = self.open_return[lane] + reward[rows, lane].sum(dtype=np.float64)
            lengths[count % WINDOW] = self.open_length[lane] + mask[rows, lane].sum()
            self.open_return[lane] = self.open_length[lane] = 0
            begin[lane], count = t + 1, count + 1
        self.count.fill_(count)
        still = np.arange(len(ended))[:, None] >= begin
        self.open_return += np.where(still, reward, 0).sum(0, dtype=np.float64)
        self.open_length += (mask & still).sum(0)

    def metrics(self) -> dict[str, float | int | None]:
        """episodes so far; return_mean and length_mean of the last 100, None before the first."""
        count = int(self.count)
        seen = slice(0, min(count, WINDOW))
        returns = float(self.returns[seen].mean()) if count else None
        lengths = float(self.lengths[seen].double().mean()) if count else None
        return {"episodes": count, "return_mean": returns, "length_mean": lengths}

    def state_tensors(self) -> dict[str, Tensor]:
        return {"returns": self.returns, "lengths": self.lengths, "count": self.count}
