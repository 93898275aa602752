"""Where the time of a training cycle goes: a run as `train` would build it, timed for some seconds, and let go."""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from proximo.compiler import compiling
from proximo.run import loop, session
from proximo.run.clock import CHECKPOINTS, ENVIRONMENT, PARTS, TOGETHER, UPDATE, Clock, watching
from proximo.run.config import Resolved
from proximo.run.limits import Gradient, gradient_of, limits
from proximo.run.log import RunLog
from proximo.run.machine import computing
from proximo.run.panel import Silent
from proximo.run.run import EnvRun, save
from proximo.run.seeding import seed_all
from proximo.run.signals import Interrupts
from proximo.sources.making import EnvLike

SECONDS, LEAST = 5.0, 3  # of cycles that are timed, and how many at least
WARM_SECONDS, WARM_MOST = 1.0, 5  # of cycles before them, besides the first
LONG_UPDATE = 2.0  # seconds; a longer one is not timed uncompiled too


@dataclass(frozen=True)
class Part:
    """One part of the cycle."""

    ms: float
    share: float
    at_best_ms: float | None  # None where nothing says how little it could be


@dataclass(frozen=True)
class Profile:
    """Where a cycle's time goes."""

    config: Resolved
    notes: list[str]
    cycles: int  # that were timed
    cycle_ms: float
    clock_share: float  # of the time; what the clock took, and was taken off
    compile_seconds: float | None  # None where nothing was compiled
    steps_per_second: float
    environment_steps_per_second: float  # if only the environment cost time
    parts: dict[str, Part]
    gradient_step: Gradient

    def share(self, *names: str) -> float:
        """What these parts take of the cycle, together."""
        return sum(self.parts[name].share for name in names if name in self.parts)

    def to_json(self) -> dict[str, Any]:
        c, measured = self.config, asdict(self)
        del measured["config"]
        run = {name: getattr(c.run, name) for name in ("envs", "backend", "overlap", "compile", "device", "threads")}
        return {"env": c.env, "algo": c.algo, "preset": c.preset, "horizon": c.algorithm.horizon, **run, **measured}


def profile(env: EnvLike, config: Resolved, notes: list[str], quiet: bool = False) -> Profile:
    """Take the time of a run apart; it lives in a temporary folder and is gone afterwards.

    Says what was chosen as `train` does, and raises a ProximoError where `train` would.
    """
    config, lanes, choices = session.fitted(env, config)
    if not quiet:
        print(*notes, *choices, sep="\n", file=sys.stderr, flush=True)
    with ExitStack() as stack:
        stack.enter_context(computing(config))
        seed_all(config.run.seed)
        run = session.build(env, config, lanes)
        run.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="proximo-profile-")))
        stack.callback(run.source.close)
        log = RunLog(run.folder, run.step)
        stack.callback(log.close)
        return measured(Cycles(run, log, stack.enter_context(Interrupts())), notes + choices)


class Cycles:
    """Cycles of a run, as many as are asked for; its schedules begin again where it would end."""

    def __init__(self, run: EnvRun, log: RunLog, interrupts: Interrupts) -> None:
        self.run, self.log, self.interrupts = run, log, interrupts
        self.guard = loop.Guard(run, log, saves=False)
        self.settle = torch.cuda.synchronize if run.policy.device.type == "cuda" else lambda: None

    def go(self, seconds: float, least: int, most: float = np.inf) -> tuple[list[float], int]:
        """The seconds of each cycle, and the live steps of all."""
        taken, steps = list[float](), 0
        while len(taken) < least or (sum(taken) < seconds and len(taken) < most):
            if self.run.finished:
                self.run.step = 0
            begin, before = time.perf_counter(), self.run.step
            loop.cycle(self.run, self.guard, self.log, Silent())
            self.settle()
            taken.append(time.perf_counter() - begin)
            steps += self.run.step - before
            if self.interrupts.caught is not None:
                raise KeyboardInterrupt
        return taken, steps


def measured(cycles: Cycles, notes: list[str]) -> Profile:
    """Warm up, time ordinary cycles, then what else there is to know."""
    run, settle = cycles.run, cycles.settle
    c = run.config
    loop.start_lanes(run)
    [first], _ = cycles.go(0, 1)
    cycles.go(WARM_SECONDS, 1, WARM_MOST)
    clock = Clock(settle)
    with watching(run, clock):
        taken, steps = cycles.go(SECONDS, LEAST)
    cost, count = clock.cost(), len(taken)
    cycle = (sum(taken) - sum(cost.values())) / count
    spent = {name: max(0.0, seconds - cost[name]) / count for name, seconds in clock.spent.items()}
    gradient = gradient_of(run, spent.get(UPDATE, 0.0), settle)
    best = limits(run, gradient, settle)
    spent[CHECKPOINTS] = checkpoint_seconds(run) * min(1.0, c.rollout / c.run.checkpoint_every)
    whole = cycle + spent[CHECKPOINTS]
    compiled = c.run.compile == "on"
    if compiled and spent.get(UPDATE, 0.0) < LONG_UPDATE:
        gradient = replace(gradient, uncompiled_us=update_uncompiled(cycles) / gradient.steps * 1e6)

    def part(name: str) -> Part:
        known = name in best and not (name == ENVIRONMENT and c.run.overlap == "on")  # then it is waited for
        return Part(spent[name] * 1e3, spent[name] / whole, best[name] * 1e3 if known else None)

    return Profile(
        config=c,
        notes=notes,
        cycles=count,
        cycle_ms=whole * 1e3,
        clock_share=sum(cost.values()) / sum(taken),
        compile_seconds=max(0.0, first - cycle) if compiled else None,
        steps_per_second=steps / count / whole,
        environment_steps_per_second=steps / count / best[TOGETHER if TOGETHER in best else ENVIRONMENT],
        parts={name: part(name) for name in PARTS if name in spent},
        gradient_step=gradient,
    )


def update_uncompiled(cycles: Cycles) -> float:
    """Seconds of an update as it would be uncompiled."""
    clock = Clock(cycles.settle)
    with compiling(False), watching(cycles.run, clock):
        cycles.go(0, 1)
    return clock.spent[UPDATE]


def checkpoint_seconds(run: EnvRun) -> float:
    """Seconds to save the run and to start its lanes anew."""
    begin = time.perf_counter()
    save(run)
    loop.start_lanes(run)
    return time.perf_counter() - begin
