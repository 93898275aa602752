"""The registry of algorithms: a name on the command line, a class here."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from proximo.algorithms.a2c import A2C
from proximo.algorithms.adaptive_clip import AdaptiveClip
from proximo.algorithms.adaptive_lr import AdaptiveLR
from proximo.algorithms.dual_clip import DualClip
from proximo.algorithms.fisher_rao import FisherRao
from proximo.algorithms.fixed_kl import FixedKL
from proximo.algorithms.natural import NPG
from proximo.algorithms.penalty import Penalty
from proximo.algorithms.ppo import PPO
from proximo.algorithms.recompute import RecomputePPO
from proximo.algorithms.reinforce import REINFORCE
from proximo.algorithms.reuse import Reuse
from proximo.algorithms.trpo import TRPO
from proximo.algorithms.trpo_reuse import TRPOReuse
from proximo.algorithms.unconstrained import Unconstrained
from proximo.batch import Batch
from proximo.errors import ConfigError, unknown


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


@runtime_checkable
class Expecting(Algorithm, Protocol):
    """An algorithm that keeps whole collections, and so must know their shape before there is one."""

    def expect(self, example: Batch) -> None:
        """Make room for collections like this one."""
        ...


# Each has a Config of its own and is made from (policy, config).
ALGORITHMS: dict[str, Any] = {
    "reinforce": REINFORCE,
    "a2c": A2C,
    "ppo": PPO,
    "penalty": Penalty,
    "fixed_kl": FixedKL,
    "unconstrained": Unconstrained,
    "dual_clip": DualClip,
    "adaptive_clip": AdaptiveClip,
    "adaptive_lr": AdaptiveLR,
    "fisher_rao": FisherRao,
    "recompute": RecomputePPO,
    "reuse": Reuse,
    "natural": NPG,
    "trpo": TRPO,
    "trpo_reuse": TRPOReuse,
}


def algorithm_named(name: str) -> Any:
    """The class registered under a name; UnknownName suggests close ones."""
    if not isinstance(name, str):
        raise ConfigError(f"algo is {name!r}: give a name; a new one is a file beside ours (CONTRIBUTING.md)")
    if name not in ALGORITHMS:
        raise unknown("algorithm", name, ALGORITHMS)
    return ALGORITHMS[name]
