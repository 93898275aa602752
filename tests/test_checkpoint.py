"""A good checkpoint is never lost: not to a full disk, a killed process, a signal, or a byte that went bad."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import proximo
from proximo.errors import CheckpointError, ProximoError, RunFolderError
from proximo.run import checkpoint, folder, loop, session
from proximo.run.checkpoint import INFO, MANIFEST, MODEL, STATE
from proximo.run.evaluate import evaluate

FILES = (MODEL, STATE, INFO, MANIFEST)
CHANGES = ("open", "mkdir", "write", "fsync", "rename", "replace", "unlink", "rmdir")  # every way to touch the disk
LENGTH = 50_000  # of a tensor that takes a while to write


class Killed(BaseException):
    """Stands for SIGKILL: nobody catches it."""


def put(run: Path, step: int, mark: int) -> Path:
    """Save a small checkpoint whose every file depends on `mark`."""
    tensors = {"weight": torch.arange(60.0).reshape(6, 10) + mark, "count": torch.tensor(mark)}
    return checkpoint.save(run / "checkpoints", step, tensors, {"moment": torch.full((7,), mark)}, {"mark": mark})


def contents(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in FILES}


@contextlib.contextmanager
def failing(calls: tuple[str, ...], nth: int, error: Callable[[], BaseException], lasting: bool) -> Iterator[list[str]]:
    """The nth of these calls into `os` (counted together) fails, or all from it on; yields those that did."""
    count, failed = itertools.count(1), list[str]()

    def wrapped(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call(*args: object, **named: object) -> object:
            now = next(count)
            if now == nth or (lasting and now > nth):
                failed.append(name)
                raise error()
            return real(*args, **named)

        return call

    with contextlib.ExitStack() as stack:
        for name in calls:
            stack.enter_context(mock.patch.object(os, name, wrapped(name)))
        yield failed


def disk_full() -> OSError:
    return OSError(28, "No space left on device")


def assert_whole(run: Path, old: dict[str, bytes], new: dict[str, bytes], step: int) -> None:
    """All that is listed loads; step 100 is as it was; `step` is the old one, the new one, or not there."""
    for path in checkpoint.all_of(run):
        checkpoint.load(path)
        assert contents(path) in ((old,) if path.name != f"{step:012d}" else (old, new))
    assert contents(checkpoint.latest(run, pytest.fail).path) in (old, new)
    if step != 100:
        assert contents(run / "checkpoints" / "000000000100") == old


@pytest.mark.parametrize("step", [100, 200], ids=["the same step again", "the next step"])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize(
    ("calls", "error"), [(("write",), disk_full), (("fsync",), disk_full), (("rename",), disk_full), (CHANGES, Killed)]
)
def test_a_save_stopped_at_any_call(
    tmp_path: Path, calls: tuple[str, ...], error: Callable[[], BaseException], lasting: bool, step: int
) -> None:
    new = contents(put(tmp_path / "reference", step, mark=2))
    for nth in itertools.count(1):
        run, stopped = tmp_path / str(nth), False
        old = contents(put(run, 100, mark=1))
        with failing(calls, nth, error, lasting) as failed:
            try:
                put(run, step, mark=2)
            except (CheckpointError, Killed):
                stopped = True
        assert stopped == bool(failed), "a failure went unsaid"
        assert_whole(run, old, new, step)
        assert contents(put(run, step, mark=2)) == new, "what was left behind hinders the next save"
        if not failed:
            return


def test_short_writes_still_give_a_whole_file(tmp_path: Path) -> None:
    whole, real = contents(put(tmp_path / "whole", 100, mark=1)), os.write
    with mock.patch.object(os, "write", lambda descriptor, data: real(descriptor, data[:7])):
        path = put(tmp_path / "short", 100, mark=1)
    assert contents(path) == whole
    assert checkpoint.load(path).info == {"mark": 1}


SAVE_FOREVER = f"""
import itertools, sys, torch
from pathlib import Path
from proximo.run import checkpoint
for step in itertools.count(int(sys.argv[2])):
    weight = {{"weight": torch.full(({LENGTH},), float(step))}}
    checkpoint.save(Path(sys.argv[1]), step, weight, weight, {{"step": step}})
    print(step, flush=True)
"""


def test_killed_at_random_moments(tmp_path: Path) -> None:
    step, midway = 0, 0
    for kills in itertools.count(1):
        command = [sys.executable, "-c", SAVE_FOREVER, str(tmp_path / "checkpoints"), str(step + 1)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(random.uniform(0, 0.1))
        process.kill()
        step = max(step + 1, *map(int, process.communicate()[0].split()), 0)
        newest = checkpoint.latest(tmp_path, pytest.fail)
        assert newest.info["step"] >= step
        for tensors in (newest.model, newest.state):
            assert torch.equal(tensors["weight"], torch.full((LENGTH,), float(newest.info["step"])))
        midway += any((tmp_path / "checkpoints").glob(".writing-*"))
        if midway and kills >= 8:
            break
        assert kills < 80, "no kill came in the middle of a save: nothing was shown"


@pytest.mark.parametrize("name", FILES)
def test_any_byte_changed_or_cut_off_is_noticed(tmp_path: Path, name: str) -> None:
    """At every position of the file one bit, another bit, or all that follows."""
    put(tmp_path, 100, mark=1)
    path = put(tmp_path, 200, mark=2)
    good = (path / name).read_bytes()
    for i in range(len(good)):
        for bad in (flipped(good, i, 0x01), flipped(good, i, 0x20), good[:i]):
            (path / name).write_bytes(bad)
            with pytest.raises(CheckpointError, match=re.escape(str(path / name))):
                checkpoint.load(path)
    for bad in (good + b"\n", good + good, b""):
        (path / name).write_bytes(bad)
        assert_skipped(tmp_path, name)
    (path / name).unlink()
    assert_skipped(tmp_path, name)
    (path / name).write_bytes(good)
    assert checkpoint.latest(tmp_path, pytest.fail).info == {"mark": 2}


def flipped(data: bytes, i: int, bits: int) -> bytes:
    return data[:i] + bytes([data[i] ^ bits]) + data[i + 1 :]


def assert_skipped(run: Path, name: str) -> None:
    told: list[str] = []
    assert checkpoint.latest(run, told.append).info == {"mark": 1}
    assert f"000000000200/{name}" in told[0]
    assert told[1:] == ["taking that of step 100 instead"]


def test_no_good_checkpoint_at_all(tmp_path: Path) -> None:
    (put(tmp_path, 100, mark=1) / MODEL).write_bytes(b"")
    told: list[str] = []
    with pytest.raises(CheckpointError, match="no checkpoint that can be loaded"):
        checkpoint.latest(tmp_path, told.append)
    assert len(told) == 1


def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(run: Path) -> None:
    """What it logged shows that it had some: they may have been moved, and its logs are all that is left."""
    (run / "checkpoints").rename(run / "moved")
    logged = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="no checkpoint that can be loaded"):
        proximo.resume(run, quiet=True)
    assert (run / "metrics.jsonl").read_bytes() == logged


@pytest.mark.parametrize("error", [Killed, disk_full])
def test_config_survives_being_rewritten(run: Path, error: Callable[[], BaseException]) -> None:
    """A resumed run writes config.json again: without it every checkpoint is lost."""
    config = folder.read_config(run)
    for nth in itertools.count(1):
        with failing(CHANGES, nth, error, lasting=False) as failed, contextlib.suppress(Killed, OSError, ProximoError):
            folder.write_config(run, config)
        assert folder.read_config(run) == config
        if not failed:
            return


TINY = ["--envs", "4", "--horizon", "64", "--minibatches", "4", "--epochs", "1", "--eval-every", "0"]
LONG = ["train", "CartPole-v1", *TINY, "--steps", "9000000", "--checkpoint-every", "9000000", "--eval-episodes", "1"]


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "proximo", *args]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_run_goes_on(tmp_path: Path, number: signal.Signals, code: int) -> None:
    run, pipe = tmp_path / "run", subprocess.PIPE
    process = subprocess.Popen(command(*LONG, "--out", str(run)), stdout=pipe, stderr=pipe, text=True)
    while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").stat().st_size == 0:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in err) == (code, False)
    step = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert f"stopped at step {step:,}, saved" in out
    assert checkpoint.latest(run, pytest.fail).info["step"] == step
    assert proximo.load(run).act([0.0, 0.0, 0.0, 0.0]) in (0, 1)
    done = subprocess.run(command("resume", str(run), "--steps", str(step + 600)), capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert f"resuming {run} at step {step:,}" in done.stderr
    assert checkpoint.latest(run, pytest.fail).info["step"] > step


def test_a_signal_at_the_last_moment_of_an_update_saves_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the loop has asked whether to save, before it asks whether to go on."""

    def crossed(before: int, now: int, every: int) -> bool:
        if every == 5000 and now > 500:
            os.kill(os.getpid(), signal.SIGINT)
        return False

    monkeypatch.setattr(loop, "crossed", crossed)
    shape = dict(envs=4, horizon=64, minibatches=4, epochs=1, eval_every=0)
    run = proximo.train("CartPole-v1", steps=20_000, checkpoint_every=5000, **shape, out=tmp_path / "run", quiet=True)
    assert run.interrupted == signal.SIGINT
    assert checkpoint.latest(run.folder, pytest.fail).info["step"] == run.step


@pytest.mark.parametrize("nth", [1, 2])
def test_an_evaluation_that_a_signal_cut_short_is_made_when_the_run_goes_on(
    nth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two: the first, and that of a run which has learned all it was to learn."""
    shape = dict(steps=520, envs=4, horizon=64, minibatches=4, epochs=1, eval_every=200, eval_episodes=2, quiet=True)
    proximo.train("CartPole-v1", **shape, out=tmp_path / "whole")
    played = list[int]()

    def cut_short(*given: Any) -> Any:
        played.append(1)
        if len(played) == nth:
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*given)

    monkeypatch.setattr(session, "evaluate", cut_short)
    run = proximo.train("CartPole-v1", **shape, out=tmp_path / "cut")
    assert (run.interrupted, run.evaluated == 0) == (signal.SIGINT, nth == 1)
    again = proximo.resume(run.folder, quiet=True)
    whole, cut = (folder.read_rows(tmp_path / name / folder.EVALS) for name in ("whole", "cut"))
    assert len(whole) == len(cut) == 2
    assert whole[:nth] == cut[:nth]
    assert again.score is not None
    with pytest.raises(RunFolderError, match="is complete"):
        proximo.resume(run.folder, quiet=True)


def test_disk_full_while_logging(tmp_path: Path) -> None:
    """No file may grow past 100 KiB: the checkpoints fit, the logs soon do not."""
    words = ["bash", "-c", 'ulimit -f 100; exec "$@"', "-", *command(*LONG, "--out", str(tmp_path / "run"))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert proximo.load(tmp_path / "run").policy is not None
    assert "File too large" in done.stderr
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
