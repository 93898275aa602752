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
        returns = self.open_return + np.cumsum(reward, 0, dtype=np.float64)  # since each lane's episode began
        lengths = self.open_length + np.cumsum(mask, 0)
        before_return, before_length = np.zeros(ended.shape[1]), np.zeros(ended.shape[1], int)
        kept_returns, kept_lengths, count = self.returns.numpy(), self.lengths.numpy(), int(self.count)
        for t, lane in np.argwhere(ended).tolist():
            place = count % WINDOW
            kept_returns[place] = returns[t, lane] - before_return[lane]
            kept_lengths[place] = lengths[t, lane] - before_length[lane]
            count += 1
            before_return[lane], before_length[lane] = returns[t, lane], lengths[t, lane]
        self.count.fill_(count)
        self.open_return, self.open_length = returns[-1] - before_return, lengths[-1] - before_length

    def metrics(self) -> dict[str, float | int | None]:
        """episodes so far; return_mean and length_mean of the last 100, None before the first."""
        count = int(self.count)
        seen = slice(0, min(count, WINDOW))
        returns = float(self.returns[seen].mean()) if count else None
        lengths = float(self.lengths[seen].double().mean()) if count else None
        return {"episodes": count, "return_mean": returns, "length_mean": lengths}

    def state_tensors(self) -> dict[str, Tensor]:
        return {"returns": self.returns, "lengths": self.lengths, "count": self.count}
