"""What the peers' scripts share: their command line, a stopwatch, and the JSON object that each prints last."""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from machine import versions
from works import WORKS, Work

P = ParamSpec("P")
T = TypeVar("T")


def asked(*works: str) -> tuple[Work, int, int]:
    """The work, the number of steps (whole collections) and the seed that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", choices=works, default=works[0])
    parser.add_argument("--steps", type=int, default=None, help="environment steps; default: the work's own number")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    work = WORKS[args.work]
    return work, work.updates(args.steps or work.steps) * work.rollout, args.seed


@dataclass
class Stopwatch:
    """Seconds spent in what it watches, and how often that was called."""

    seconds: float = 0.0
    calls: int = 0

    def around(self, function: Callable[P, T]) -> Callable[P, T]:
        """The same function, timed."""

        @wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> T:
            begin = time.perf_counter()
            self.calls += 1
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed


def report(
    peer: str,
    work: Work,
    steps: int,
    seconds: float,
    packages: tuple[str, ...],
    *,
    updates: int | None = None,
    learning: Stopwatch | None = None,
    final_return: float | None = None,
    **more: Any,
) -> None:
    """Print the result of a training of `steps` steps that took `seconds`, `learning.seconds` of them in updates.

    An update is all that a peer does with a finished collection, advantages aside where it has them in collecting.
    `updates` is given where `steps` leaves out rows that were collected.
    """
    gradient_steps = (updates or steps // work.rollout) * work.epochs * work.minibatches
    row = {
        "peer": peer,
        "work": work.name,
        "steps": steps,
        "steps_per_second": round(steps / seconds, 1),
        "seconds": round(seconds, 3),
        "update_us": round(1e6 * learning.seconds / gradient_steps, 1) if learning else None,
        "collect_share": round(1 - learning.seconds / seconds, 3) if learning else None,
        "memory_mb": peak_memory(),
        "final_return": None if final_return is None else round(float(final_return), 1),
        "versions": versions(*packages),
        **more,
    }
    print(json.dumps(row), flush=True)


def peak_memory() -> int:
    """Largest resident size so far of this process, in MB; of its workers, where it has some, nothing is known."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
