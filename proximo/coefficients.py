"""Numbers that change while training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proximo.batch import Batch


def linear(start: float, end: float, progress: float) -> float:
    """The value on the line from `start` at progress 0 to `end` at progress 1."""
    return start + (end - start) * min(max(progress, 0.0), 1.0)


def steered(
    value: float, measured: float, target: float, band: float, factor: float, least: float, most: float
) -> float:
    """The rule of PPO's adaptive penalty (Schulman et al. 2017, arXiv:1707.06347, section 4), for any number.

        value · factor   where measured > target · band
        value / factor   where measured < target / band

    and in between as it was; kept within [least, most], so that it always finds back. A penalty's factor is above
    one, that of a learning rate or a clip range below.
    """
    if measured > target * band:
        value = value * factor
    elif measured < target / band:
        value = value / factor
    return min(max(value, least), most)


def proportional(value: float, measured: float, target: float, count: int, horizon: float) -> float:
    """The adaptive KL controller of Ziegler et al. (2019, arXiv:1909.08593).

        e = clip(measured / target − 1, −0.2, 0.2);   value · (1 + e · count / horizon)

    `measured` is the KL of whole sequences, summed over their tokens (`reference.sequence_kl`); `count` the sequences
    of this update, `horizon` how many it takes to answer a lasting error.
    """
    error = min(max(measured / target - 1, -0.2), 0.2)
    return value * (1 + error * count / horizon)


class Coefficient:
    """A number in an objective that changes between updates: it rides along in the batch, as a column of its name.

    beta = Coefficient("beta", 1.0)
    objective = surrogate() + beta * kl_old()      # made once
    batch = beta.on(batch)                         # before every update
    beta.value *= 2                                # after it

    A number that only Python knew would stay what it was when the update was compiled.
    """

    def __init__(self, name: str, value: float) -> None:
        self.name, self.tensor = name, torch.tensor(value, dtype=torch.float64)

    @property
    def value(self) -> float:
        return self.tensor.item()

    @value.setter
    def value(self, value: float) -> None:
        self.tensor.fill_(value)

    def on(self, batch: Batch) -> Batch:
        """A batch with this number as a column, shaped like the mask."""
        return batch.replace(**{self.name: torch.full_like(batch.mask, self.value, dtype=torch.float32)})

    def state_tensors(self) -> dict[str, Tensor]:
        return {self.name: self.tensor}


def at(coefficient: float | Coefficient, batch: Batch) -> Any:
    """The number itself, or the batch's column of it: a float or a scalar tensor."""
    return getattr(batch, coefficient.name).reshape(-1)[0] if isinstance(coefficient, Coefficient) else coefficient
