"""The registry of algorithms: a name on the command line, a class here."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from proximo.algorithms.natural import NPG
from proximo.algorithms.ppo import PPO
from proximo.algorithms.reuse import Reuse
from proximo.algorithms.trpo import TRPO
from proximo.batch import Batch
from proximo.errors import unknown


class Algorithm(Protocol):
    """What the training loop asks of an algorithm."""

    def step(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """Learn from one collection; return metrics."""
        ...

    def state_tensors(self) -> dict[str, Tensor]:
        """The live tensors that `step` changes besides the policy's."""
        ...


@runtime_checkable
class Expecting(Algorithm, Protocol):
    """An algorithm that keeps whole collections, and so must know their shape before there is one."""

    def expect(self, example: Batch) -> None:
        """Make room for collections like this one."""
        ...


# Each has a Config of its own and is made from (policy, config).
ALGORITHMS: dict[str, Any] = {"ppo": PPO, "natural": NPG, "trpo": TRPO, "reuse": Reuse}


def algorithm_named(name: str) -> Any:
    """The class registered under a name; UnknownName suggests close ones."""
    if name not in ALGORITHMS:
        raise unknown("algorithm", name, ALGORITHMS)
    return ALGORITHMS[name]
