"""Where metrics go: metrics.jsonl, eval.jsonl, drift.jsonl, samples.jsonl and TensorBoard events."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol, cast

from proximo import ranks
from proximo.errors import RunFolderError
from proximo.run.events import EventFile
from proximo.run.files import replace_durably
from proximo.run.folder import ALARMS, DRIFT, EVALS, METRICS, SAMPLES, SAMPLES_PAGE
from proximo.run.samples import page

LATE = 1.0  # seconds that a row of drift may wait for others


class Log(Protocol):
    """What the loop tells."""

    def metrics(self, row: dict[str, Any]) -> dict[str, Any]: ...
    def evaluation(self, row: dict[str, Any], samples: Sequence[dict[str, Any]]) -> None: ...
    def drift(self, row: dict[str, Any]) -> None: ...
    def alarm(self, row: dict[str, Any]) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def log_for(folder: Path, step: int) -> Log:
    """The run's log; of several processes the first one keeps it."""
    return RunLog(folder, step) if ranks.first() else Unwritten()


class Unwritten:
    """The log of a process that leaves it to the first one."""

    def metrics(self, row: dict[str, Any]) -> dict[str, Any]:
        return {name: finite(value) for name, value in row.items()}

    def evaluation(self, row: dict[str, Any], samples: Sequence[dict[str, Any]]) -> None: ...
    def drift(self, row: dict[str, Any]) -> None: ...
    def alarm(self, row: dict[str, Any]) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class RunLog:
    """Appends one object per update and per evaluation; what is written is on its way to the disk at once.

    Rows of drift wait for one another where updates take less than a second, to spare short ones a write: until a
    second has passed, or `flush` is called, as it must be before a checkpoint, after which they are not made again.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.drift_file = folder, cast(IO[str] | None, None)
        self.drifts, self.flushed = list[dict[str, Any]](), -math.inf  # what waits; when rows last went
        with self.writing():
            self.metrics_file = (folder / METRICS).open("a", buffering=1)
            self.evals_file = (folder / EVALS).open("a", buffering=1)
            self.events = EventFile(folder, step)

    def metrics(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write an update's metrics; returns them as written (numbers that are not finite become null)."""
        row = {name: finite(value) for name, value in row.items()}
        with self.writing():
            self.metrics_file.write(json.dumps(row) + "\n")
            self.show("train", row["step"], {name: row[name] for name in row if name not in ("step", "update")})
        if self.drifts and time.monotonic() >= self.flushed + LATE:
            self.flush()
        return row

    def evaluation(self, row: dict[str, Any], samples: Sequence[dict[str, Any]] = ()) -> None:
        """Write what an evaluation found; and, where it has samples, those, all and as the page of the last ones."""
        row = plain(row)
        with self.writing():
            self.evals_file.write(json.dumps(row) + "\n")
            if samples:
                rows = [{"step": row["step"], **plain(sample)} for sample in samples]
                with (self.folder / SAMPLES).open("a") as file:
                    file.writelines(json.dumps(each) + "\n" for each in rows)
                replace_durably(self.folder / SAMPLES_PAGE, page(rows).encode())
            self.show("eval", row["step"], {name: row[name] for name in ("return_mean", "length_mean")})

    def drift(self, row: dict[str, Any]) -> None:
        """Write how an update was held to its bound, with its metrics or later; the file is there in runs with rows."""
        self.drifts.append({name: finite(value) for name, value in row.items()})

    def flush(self) -> None:
        """Write the rows of drift that wait."""
        rows, self.drifts, self.flushed = self.drifts, [], time.monotonic()
        if not rows:
            return
        with self.writing():
            if self.drift_file is None:
                self.drift_file = (self.folder / DRIFT).open("a")
            self.drift_file.write("".join(json.dumps(row) + "\n" for row in rows))
            self.drift_file.flush()

    def alarm(self, row: dict[str, Any]) -> None:
        """Write down what was amiss; the file is there in runs where something was."""
        with self.writing(), (self.folder / ALARMS).open("a") as file:
            file.write(json.dumps(row) + "\n")

    def show(self, group: str, step: int, row: dict[str, Any]) -> None:
        """Numbers for TensorBoard, all in one event."""
        self.events.scalars(step, {f"{group}/{name}": number for name, number in row.items() if number is not None})

    def close(self) -> None:
        with self.writing(), ExitStack() as stack:
            for file in (self.metrics_file, self.evals_file, self.events):
                stack.callback(file.close)
            stack.callback(lambda: self.drift_file.close() if self.drift_file is not None else None)
            self.flush()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A disk that refuses is told in one line."""
        try:
            yield
        except OSError as error:
            raise RunFolderError(f"cannot write to {self.folder}: {error}; its last checkpoint stands") from error


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row with null for numbers that are not finite, which JSON cannot say."""
    return {name: finite(value) if isinstance(value, float) else value for name, value in row.items()}


def finite(value: Any) -> Any:
    """A plain number, or None for what JSON cannot say."""
    if value is None or isinstance(value, int):
        return value
    value = float(value)
    return value if math.isfinite(value) else None
