"""What a run writes down: rows of drift may wait for one another, and none is lost that is not made again."""

from __future__ import annotations

import itertools
import json
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import proximo
from proximo.errors import EnvFailure, RunFolderError
from proximo.run import log as logs
from proximo.run import loop
from proximo.run.log import RunLog
from tests.toys import Recall

SHORT: dict[str, Any] = dict(
    envs=2, horizon=8, minibatches=1, epochs=1, quiet=True, eval_every=0, eval_episodes=1, max_kl=1e6
)


def numbers(folder: Path, name: str = "drift.jsonl") -> list[int]:
    """The updates whose rows a file holds."""
    path = folder / name
    return [json.loads(line)["update"] for line in path.read_text().splitlines()] if path.exists() else []


def cycle(log: RunLog, update: int) -> None:
    """What the loop tells of one update."""
    row = {"step": 10 * update, "update": update}
    log.drift({**row, "kl": math.nan})
    log.metrics({**row, "return_mean": 1.0})


def test_rows_of_drift_wait_where_updates_are_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LATE", math.inf)
    log = RunLog(tmp_path, 0)
    for update in (1, 2, 3):
        cycle(log, update)
    assert numbers(tmp_path) == []
    assert numbers(tmp_path, "metrics.jsonl") == [1, 2, 3]
    log.flush()
    assert numbers(tmp_path) == [1, 2, 3]
    cycle(log, 4)
    log.close()
    assert numbers(tmp_path) == [1, 2, 3, 4]
    assert json.loads((tmp_path / "drift.jsonl").read_text().splitlines()[0])["kl"] is None


def test_where_updates_are_long_drift_is_there_with_their_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "LATE", 0.0)
    log = RunLog(tmp_path, 0)
    for update in (1, 2):
        cycle(log, update)
        assert numbers(tmp_path) == numbers(tmp_path, "metrics.jsonl") == [*range(1, update + 1)]
    log.close()


class Once(Recall):
    """Recall, in which something happens in one of the steps that all lanes take."""

    def __init__(self, happens: Callable[[], None], steps: Iterator[int]) -> None:
        super().__init__()
        self.happens, self.steps = happens, steps

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if next(self.steps) == 150:
            self.happens()
        return super().step(action)


def breaks() -> None:
    raise RuntimeError("broke")


def interrupts() -> None:
    signal.raise_signal(signal.SIGINT)


def checked(save: Callable[[Any], None], saved: list[int]) -> Callable[[Any], None]:
    """The same, after a look at what is on the disk by then."""

    def looked(run: Any) -> None:
        assert numbers(run.folder) == [*range(1, run.update + 1)]
        saved.append(run.update)
        save(run)

    return looked


@pytest.mark.parametrize("happens", [lambda: None, breaks, interrupts])
def test_no_checkpoint_is_ahead_of_the_drift_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]
) -> None:
    """A process that is killed after a save has lost no row that the resumed run will not make."""
    monkeypatch.setattr(logs, "LATE", math.inf)
    saved = list[int]()
    for name in ("save", "save_if_new"):
        monkeypatch.setattr(loop, name, checked(getattr(loop, name), saved))
    steps = itertools.count()
    settings = SHORT | dict(steps=256, checkpoint_every=64, out=tmp_path / "run", backend="sync")
    if happens is breaks:
        with pytest.raises(EnvFailure, match="broke"):
            proximo.train(lambda: Once(happens, steps), **settings)
    else:
        run = proximo.train(lambda: Once(happens, steps), **settings)
        assert bool(run.interrupted) == (happens is interrupts)
    assert len(saved) >= 3
    assert saved[-1] > saved[0] > 1


def test_what_cannot_be_written_keeps_no_file_open(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    log.drift({"step": 1, "update": 1})
    (tmp_path / "drift.jsonl").mkdir()
    with pytest.raises(RunFolderError, match=r"cannot write to .*drift\.jsonl"):
        log.close()
    assert log.metrics_file.closed
    assert log.evals_file.closed
    assert log.events.file.closed
