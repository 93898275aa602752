"""A clock that divides a training cycle into its parts, for as long as it watches; no other code knows of it."""

from __future__ import annotations

import inspect
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from proximo.run import loop
from proximo.run.run import Run
from proximo.sources.halves import Halves
from proximo.sources.tensors import TensorSource

ENVIRONMENT, POLICY, TOGETHER = "environment", "policy", "environment and policy"
BUFFERS, JUDGING, ADVANTAGES, UPDATE = "buffers", "evaluation", "advantages", "update"
LOGGING, CHECKPOINTS, REST = "logging", "checkpoints", "rest"
PARTS = (ENVIRONMENT, POLICY, TOGETHER, BUFFERS, JUDGING, ADVANTAGES, UPDATE, LOGGING, CHECKPOINTS, REST)
DIVIDED = {BUFFERS, ADVANTAGES, REST}  # what is left of `collect`, of `algorithm.step`, of the cycle
TRIALS, CALLS = 5, 1_000  # the quietest trial tells what the clock costs


class Clock:
    """Says which part the time belongs to: within a divided part to the part it calls, else to the outer one."""

    def __init__(self, settle: Callable[[], object]) -> None:
        self.settle = settle  # waits for what the device has yet to do
        self.part, self.since = REST, time.perf_counter()
        self.spent: dict[str, float] = defaultdict(float)
        self.calls = Counter[tuple[str, str]]()

    def turn(self, part: str) -> None:
        """From now on the time is `part`'s."""
        self.settle()
        now = time.perf_counter()
        self.spent[self.part] += now - self.since
        self.part, self.since = part, now

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, its time `part`'s."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            outer = self.part
            if outer not in DIVIDED:
                return call(*args, **kwargs)
            self.calls[outer, part] += 1
            self.turn(part)
            try:
                return call(*args, **kwargs)
            finally:
                self.turn(outer)

        return wrapped

    def cost(self) -> dict[str, float]:
        """Seconds that the clock itself put on each part: what it puts on a call of nothing, times the calls."""
        outside, inside = min((call_of_nothing(self.settle) for _ in range(TRIALS)), key=sum)
        cost: dict[str, float] = defaultdict(float)
        for (outer, inner), calls in self.calls.items():
            cost[outer] += calls * outside
            cost[inner] += calls * inside
        return cost


def call_of_nothing(settle: Callable[[], object]) -> tuple[float, float]:
    """Seconds that a clock puts on the caller, and on the part that is called."""
    clock = Clock(settle)
    nothing = clock.timed(POLICY, lambda: None)
    for _ in range(CALLS):
        nothing()
    clock.turn(REST)
    return clock.spent[REST] / CALLS, clock.spent[POLICY] / CALLS


@contextmanager
def watching(run: Run, clock: Clock) -> Iterator[None]:
    """A block in which the clock sees the parts of a cycle of a warm run; everything is as before afterwards."""
    with ExitStack() as stack:
        for owner, name, part in parts_of(run):
            if name in vars(owner):
                stack.callback(setattr, owner, name, vars(owner)[name])
            else:
                stack.callback(delattr, owner, name)
            setattr(owner, name, clock.timed(part, getattr(owner, name)))
        clock.turn(REST)
        clock.spent.clear()
        yield
        clock.turn(REST)


def parts_of(run: Run) -> list[tuple[Any, str, str]]:
    """What is called in a cycle, as (owner, attribute), and the part that it is."""
    source, policy, algorithm = run.source, run.policy, run.algorithm
    parts: Sequence[Any] = source.halves if isinstance(source, Halves) else [source]
    if isinstance(source, TensorSource):
        found = [(source, "walk", TOGETHER), (source.env, "noise", TOGETHER), (policy, "noise", TOGETHER)]
    else:
        found = [(policy, "to_env", POLICY), (policy, "noise", POLICY)]
        calls = ("step_async", "step_wait", "reset") if isinstance(source, Halves) else ("step", "reset")
        for part in parts:
            found += [*((part.envs, call, ENVIRONMENT) for call in calls), (part.actor, "act", POLICY)]
    home = sys.modules[type(algorithm).__module__]
    updaters = [(home, name, UPDATE) for name, thing in vars(home).items() if is_updater(thing)]
    judges = [source] if isinstance(source, TensorSource) else [part.actor for part in parts]
    found += [(source, "collect", BUFFERS), *((judge, "judge", JUDGING) for judge in judges)]
    return [*found, (algorithm, "step", ADVANTAGES), *updaters, (loop, "record", LOGGING)]


def is_updater(thing: Any) -> bool:
    return inspect.isfunction(thing) and thing.__module__.startswith("proximo.updaters")
