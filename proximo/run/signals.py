"""Ctrl-C, termination, a closed terminal: the first asks the run to finish its update and save, the second ends it."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from proximo import ranks


class Interrupts:
    """While entered, these signals are noted in `caught` instead of raised (in the main thread only).

    SIGHUP stays ignored where it was, as under nohup.
    """

    def __init__(self) -> None:
        self.caught: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM]
            if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
                numbers.append(signal.SIGHUP)
            for number in numbers:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            if handler is None:  # it was not installed from Python
                continue
            signal.signal(number, handler)

    def agreed(self) -> int | None:
        """`caught`, once it was by any of the processes of the run: they all learn of it in the same update."""
        self.caught = ranks.most(self.caught or 0) or None
        return self.caught

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.caught is not None:
            raise KeyboardInterrupt
        self.caught = number
        if os.isatty(2) and ranks.first():
            os.write(2, b"proximo: finishing the update, then saving; again to stop at once\n")
