"""Where metrics go: metrics.jsonl, eval.jsonl, drift.jsonl and TensorBoard events."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from proximo.errors import RunFolderError
from proximo.run.folder import DRIFT, EVALS, METRICS


class RunLog:
    """Appends one object per update and per evaluation; what is written is on its way to the disk at once."""

    def __init__(self, folder: Path, step: int) -> None:
        # TensorBoard's package takes a second to import; only a run that trains pays for it.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        proto: Any = vars(event_pb2) | vars(summary_pb2)  # made as they are imported: no type checker knows them
        self.event, self.summary, session = proto["Event"], proto["Summary"], proto["SessionLog"]
        self.folder, self.drift_file = folder, cast(IO[str] | None, None)
        with self.writing():
            self.metrics_file = (folder / METRICS).open("a", buffering=1)
            self.evals_file = (folder / EVALS).open("a", buffering=1)
            self.events = EventFileWriter(str(folder))
            again = session(status=session.START)  # what an earlier process wrote from this step on is void
            self.events.add_event(self.event(step=step + 1, wall_time=time.time(), session_log=again))

    def metrics(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write an update's metrics; returns them as written (numbers that are not finite become null)."""
        row = {name: finite(value) for name, value in row.items()}
        with self.writing():
            self.metrics_file.write(json.dumps(row) + "\n")
            self.show("train", row["step"], {name: row[name] for name in row.keys() - {"step", "update"}})
        return row

    def evaluation(self, row: dict[str, Any]) -> None:
        with self.writing():
            self.evals_file.write(json.dumps(row) + "\n")
            self.show("eval", row["step"], {name: row[name] for name in ("return_mean", "length_mean")})

    def drift(self, row: dict[str, Any]) -> None:
        """Write how an update was held to its bound; the file is there in runs that measure it."""
        with self.writing():
            if self.drift_file is None:
                self.drift_file = (self.folder / DRIFT).open("a", buffering=1)
            self.drift_file.write(json.dumps({name: finite(value) for name, value in row.items()}) + "\n")

    def show(self, group: str, step: int, row: dict[str, Any]) -> None:
        """Numbers for TensorBoard, all in one event."""
        said = [(f"{group}/{name}", number) for name, number in row.items() if number is not None]
        values = [self.summary.Value(tag=tag, simple_value=number) for tag, number in said]
        self.events.add_event(self.event(wall_time=time.time(), step=step, summary=self.summary(value=values)))

    def close(self) -> None:
        with self.writing():
            self.metrics_file.close()
            self.evals_file.close()
            if self.drift_file is not None:
                self.drift_file.close()
            self.events.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A disk that refuses is told in one line."""
        try:
            yield
        except OSError as error:
            raise RunFolderError(f"cannot write to {self.folder}: {error}; its last checkpoint stands") from error


def finite(value: Any) -> Any:
    """A plain number, or None for what JSON cannot say."""
    if value is None or isinstance(value, int):
        return value
    value = float(value)
    return value if math.isfinite(value) else None
