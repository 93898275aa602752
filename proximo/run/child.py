"""A run in a process of its own, as its parent sees it: started, followed by what it writes, asked to stop, ended."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from proximo.errors import CheckpointError, ProximoError
from proximo.run import checkpoint, folder
from proximo.run.config import Resolved
from proximo.run.ledger import beyond
from proximo.run.seeds_panel import Row
from proximo.run.settings import as_float

SAID = 2**14  # bytes; the end of what a failed run said
ASKED = (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)  # ends of a run asked to stop
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(kw_only=True)
class Child(Row):
    """One seed's run, and its process while there is one."""

    folder: Path
    config: Resolved
    process: subprocess.Popen[bytes] | None = None
    said: IO[bytes] | None = None  # its stderr
    strayed: bool = False  # it ended where its policy drifted further than it may

    def start(self, words: Sequence[str]) -> None:
        """Train it in a process of its own, out of reach of the terminal's Ctrl-C."""
        # Modules are looked for where this process looks: in the working folder, a stranger's perhaps, only if it does.
        safe = [] if {"", os.getcwd()} & set(sys.path) else ["-P"]
        command = [sys.executable, *safe, "-m", "proximo", "resume", os.path.join(".", self.folder), "--quiet", *words]
        self.said = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.said,
            start_new_session=True,
            preexec_fn=partial(die_with, os.getpid()) if LIBC else None,
        )
        self.state = "training"

    def stop(self) -> None:
        """Ask it to finish its update and save.

        By SIGTERM, whatever the user pressed: before training begins it ends a process at once, where SIGINT could be
        swallowed by some module's import.
        """
        if self.process is not None:
            self.process.terminate()
            self.state = "saving"

    def kill(self) -> None:
        """End it and its workers at once."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def look(self) -> bool:
        """See how far it is; whether it has ended."""
        if row := folder.last_row(self.folder / folder.METRICS):
            self.step = min(max(row["step"], 0), self.total)
            self.speed, self.value = (finite(row.get(name)) for name in ("steps_per_second", "return_mean"))
        if self.process is None or (status := self.process.poll()) is None:
            return False
        self.process, asked, complaint = None, self.state == "saving", self.complaint(status)
        self.settle()
        if not (asked and status in ASKED) and (status != 0 or self.state != "done"):
            self.state, self.message = "failed", complaint
        elif self.state != "done":
            self.state = "stopped"
        return True

    def settle(self, say: Callable[[str], None] = lambda text: None) -> None:
        """Read from the run's folder how far it is, and what it scored; `say` is told of damaged checkpoints."""
        try:
            saved = None if checkpoint.none_yet(self.folder) else checkpoint.latest(self.folder, say)
            self.step = 0 if saved is None else saved.number("step", int)
            rows = folder.read_rows(self.folder / folder.EVALS)
            self.strayed = saved is not None and beyond(saved.state.get("ledger.drift"), self.config.run)
        except CheckpointError:  # resuming will tell
            self.step, rows, self.strayed = 0, [], False
        over, evaluated = self.config.complete(self.step) or self.strayed, bool(rows) and rows[-1]["step"] == self.step
        if over and evaluated:
            self.state, self.total = "done", self.step
            self.score = finite(rows[-1].get("return_mean"))

    def complaint(self, status: int) -> str:
        """The one line in which the run said what was wrong."""
        assert self.said is not None
        with self.said:
            self.said.seek(max(0, self.said.seek(0, os.SEEK_END) - SAID))
            text = self.said.read().decode(errors="replace")
        lines = [line for line in text.splitlines() if line.startswith("proximo: ")]
        if status < 0:
            return f"killed by signal {-status} ({signal.strsignal(-status)})"
        return str(ProximoError(lines[-1].removeprefix("proximo: "))) if lines else f"ended with exit code {status}"


def die_with(parent: int) -> None:
    """Called in a new process: if its parent is killed with no chance to say so, so is that one (on Linux)."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # type: ignore[union-attr]
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def finite(value: object) -> float | None:
    """A number of a row, which may be a stranger's."""
    return number if isinstance(value, int | float) and math.isfinite(number := as_float(value)) else None
