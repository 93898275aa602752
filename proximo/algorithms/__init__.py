"""The registry of algorithms: a name on the command line, a class here."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from proximo.algorithms.ppo import PPO
from proximo.batch import Batch
from proximo.errors import unknown


class Algorithm(Protocol):
    """What the training loop asks of an algorithm."""

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """Learn from one collection; return metrics."""
        ...

    def state_tensors(self) -> dict[str, Tensor]:
        """The live tensors that `step` changes besides the policy's.

        What an optimizer keeps of past gradients goes under `optimizer` (`live_tensors(optimizer=…)`, or a name with
        that word in it): where an update is cut (`run/ledger.py`), it goes back with it. All else stays.
        """
        ...


# Each has a Config of its own and is made from (policy, config).
ALGORITHMS: dict[str, Any] = {"ppo": PPO}


def algorithm_named(name: str) -> Any:
    """The class registered under a name; UnknownName suggests close ones."""
    if name not in ALGORITHMS:
        raise unknown("algorithm", name, ALGORITHMS)
    return ALGORITHMS[name]
