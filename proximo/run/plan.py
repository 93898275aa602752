"""What the loop asks of a run's parts, whatever they are: its plan, its source, its judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from proximo.batch import Batch


class Schedule(Protocol):
    """The numbers of a run that the loop, the guard and the ledger go by; see `RunConfig` and `LanguageRun`."""

    @property
    def steps(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...
    @property
    def eval_every(self) -> int: ...
    @property
    def features_every(self) -> int: ...
    @property
    def max_kl(self) -> float | None: ...
    @property
    def stop_drift(self) -> float | None: ...


class Plan(Protocol):
    """A whole run, resolved: what config.json holds; see `Resolved` and `LanguagePlan`."""

    @property
    def algo(self) -> str: ...
    @property
    def run(self) -> Schedule: ...
    @property
    def title(self) -> str: ...
    @property
    def axes(self) -> tuple[str, str]:
        """What a step is, and what a return is, for people."""
        ...

    @property
    def drift_axis(self) -> str:
        """What drift is, for people."""
        ...

    @property
    def identity(self) -> dict[str, Any]: ...
    def complete(self, step: int) -> bool: ...
    def taken(self, batch: Batch) -> int: ...
    def to_json(self) -> dict[str, Any]: ...


class Tally(Protocol):
    """What a source knows of the episodes that ended."""

    def metrics(self) -> dict[str, float | int | None]: ...


class Source(Protocol):
    """Where experience comes from."""

    @property
    def episodes(self) -> Tally: ...
    def restart(self, seed: int) -> None:
        """Begin anew at a checkpoint, from the seed alone, with whatever `state_tensors` does not hold."""
        ...

    def collect(self, policy: Any) -> Batch: ...
    def state_tensors(self) -> dict[str, Tensor]: ...
    def close(self) -> None: ...


class Rating(Protocol):
    """What an evaluation found."""

    @property
    def returns(self) -> list[float]: ...
    @property
    def mean(self) -> float: ...
    @property
    def std(self) -> float: ...
    @property
    def counted(self) -> str:
        """What there is a return of each: episodes, prompts, …"""
        ...

    @property
    def samples(self) -> Sequence[dict[str, Any]]:
        """What there is to look at of some of it, rows of samples.jsonl."""
        ...

    def row(self) -> dict[str, Any]: ...


class Bookkeeper(Protocol):
    """Keeps account of how far a run's policy goes."""

    drift: Tensor

    @property
    def strayed(self) -> bool: ...
    def state_tensors(self) -> dict[str, Tensor]: ...
    def settle(self, batch: Batch, live: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, Any]: ...


class Watching(Protocol):
    """Looks at what was just logged in a run's folder; says what is amiss that was not before."""

    def updated(self, folder: Path, row: dict[str, Any]) -> list[str]: ...
    def evaluated(self, folder: Path, row: dict[str, Any]) -> list[str]: ...


Judge = Callable[[Callable[[], bool]], Rating | None]  # asked whether to stop; None where it was


def rounded(score: float) -> str:
    """A number for people: fewer digits behind the point, the larger it is."""
    return f"{score:.3f}" if abs(score) < 10 else f"{score:.1f}" if abs(score) < 1000 else f"{score:,.0f}"


def with_deviation(rating: Rating) -> str:
    """The mean of an evaluation and the deviation, with as many digits as each other."""
    digits = 3 if max(abs(rating.mean), rating.std) < 10 else 1
    return f"{rating.mean:.{digits}f} ± {rating.std:.{digits}f}"
