"""Runs that take turns in one process, so that what else the machine does meets them alike."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proximo.run import loop, session
from proximo.run.log import RunLog
from proximo.run.machine import computing
from proximo.run.panel import Silent
from proximo.run.run import Run
from proximo.run.seeding import seed_all

HERE = str(Path(__file__).resolve().parent)
if sys.path[0] == HERE:  # a script of this folder runs: mujoco.py in it must not hide the package
    sys.path.append(sys.path.pop(0))


@dataclass(frozen=True)
class Runner:
    """A run as `train` would build it, ready for its next cycle."""

    run: Run
    guard: loop.Guard
    log: RunLog

    def cycle(self) -> float:
        """Collect, learn and log once; the seconds that took."""
        begin = time.perf_counter()
        loop.cycle(self.run, self.guard, self.log, Silent())
        return time.perf_counter() - begin

    def turn(self, steps: int) -> float:
        """The whole cycles that hold so many steps; seconds a step."""
        first, seconds = self.run.step, 0.0
        while self.run.step < first + steps:
            seconds += self.cycle()
        return seconds / (self.run.step - first)


@contextmanager
def runner(env: str, algo: str, preset: str, settings: dict[str, Any]) -> Iterator[Runner]:
    """A run in a folder that is gone afterwards; it saves and evaluates nothing."""
    config, _ = session.preset_config(env, algo, preset, settings)
    config, lanes, _ = session.fitted(env, config)
    with tempfile.TemporaryDirectory() as folder, computing(config):
        seed_all(config.run.seed)
        run = session.build(env, config, lanes)
        run.folder = Path(folder)
        log = RunLog(run.folder, 0)
        try:
            loop.start_lanes(run)
            yield Runner(run, loop.Guard(run, log), log)
        finally:
            run.source.close()
            log.close()
