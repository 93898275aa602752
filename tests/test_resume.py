"""Exact resume: a run killed with SIGKILL at random times and resumed ends byte for byte as one that never stopped."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CASES = {
    ("CartPole-v1", "sync"): ["--envs", "8"],
    ("CartPole-v1", "async"): ["--envs", "4"],
    ("CartPole-v1", "envpool"): ["--envs", "8"],
    ("HalfCheetah-v5", "sync"): ["--envs", "1"],
    ("HalfCheetah-v5", "async"): ["--envs", "2"],
    ("HalfCheetah-v5", "envpool"): ["--envs", "4"],
}
COMPILED = [("CartPole-v1", "sync", "on"), pytest.param("HalfCheetah-v5", "envpool", "on", marks=pytest.mark.slow)]
FILES = ("model.safetensors", "state.safetensors")


def proximo(*args: str) -> list[str]:
    return [sys.executable, "-m", "proximo", *args, "--quiet"]


def train(out: Path, env: str, backend: str, flags: list[str], steps: int, every: int) -> list[str]:
    schedule = [
        "--steps",
        str(steps),
        "--checkpoint-every",
        str(every),
        "--eval-every",
        str(every),
        "--eval-episodes",
        "2",
    ]
    return proximo("train", env, "--backend", backend, "--out", str(out), *schedule, *flags)


def updates_done(out: Path) -> int:
    return (out / "metrics.jsonl").read_bytes().count(b"\n") if (out / "metrics.jsonl").exists() else 0


def killed_once(command: list[str], out: Path, after: int) -> int | None:
    """Run a command; SIGKILL it at some moment after it has done `after` updates. Its exit code; None if killed.

    The moment is one of the run's own progress, not of the clock: another test beside it changes how long a run lasts.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = updates_done(out)  # a resumed run begins by dropping those after its checkpoint
    while process.poll() is None and not after <= updates_done(out) != before:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.5))
    if process.poll() is None:
        process.kill()
    return None if process.wait() == -signal.SIGKILL else process.returncode


def until_done(first: list[str], out: Path, moments: list[int], last: str) -> int:
    """Start, kill at each moment, resume in between, until it is done; how often it was killed before."""
    command = first
    for kills, moment in enumerate(moments):
        code = killed_once(command, out, moment)
        if (out / "checkpoints" / last).exists():  # killed or not: a run that has saved its end is done
            return kills
        assert code is None
        command = proximo("resume", str(out))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return len(moments)


def without_times(path: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "steps_per_second")} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    checkpoints = sorted(p.name for p in (one / "checkpoints").iterdir())
    assert checkpoints == sorted(p.name for p in (other / "checkpoints").iterdir() if not p.name.startswith("."))
    assert len(checkpoints) >= 4
    for name in checkpoints:
        for file in FILES:
            here, there = (run / "checkpoints" / name / file for run in (one, other))
            assert here.read_bytes() == there.read_bytes(), f"{name}/{file}"
    for file in ("metrics.jsonl", "eval.jsonl"):
        assert without_times(one / file) == without_times(other / file)


def killed_in_the_middle(command: list[str], out: Path) -> bool:
    """Train in a new folder and SIGKILL it soon after its first boundary; whether the last was not yet reached."""
    shutil.rmtree(out, ignore_errors=True)
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while len(list((out / "checkpoints").glob("0*"))) < 2:  # the start and one boundary
        time.sleep(0.005)
        assert process.poll() is None
    time.sleep(random.uniform(0, 0.1))
    process.kill()
    process.wait()
    return len(list((out / "checkpoints").glob("0*"))) < 5


KEPT = (("CartPole-v1", "async"), ("CartPole-v1", "envpool"), ("HalfCheetah-v5", "sync"))  # each of both, once
QUICK = [pytest.param(*case, "off", marks=[] if case in KEPT else [pytest.mark.slow]) for case in CASES]


@pytest.mark.parametrize(("env", "backend", "compile"), [*QUICK, *COMPILED])
def test_killed_and_resumed_is_the_same_run(tmp_path: Path, env: str, backend: str, compile: str) -> None:
    """Small enough for every test run: four boundaries, one kill between the first and the last of them."""
    flags = ["--horizon", "128", "--epochs", "2", "--minibatches", "4", "--normalize-observation", "--normalize-reward"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = [*CASES[env, backend], *flags, "--compile", compile]
    steps = 80_000 if (env, compile) == ("CartPole-v1", "on") else 8000  # a boundary takes longer than to notice it
    subprocess.run(train(whole, env, backend, flags, steps, steps // 4), check=True, capture_output=True)
    kills = (killed_in_the_middle(train(broken, env, backend, flags, steps, steps // 4), broken) for _ in range(5))
    assert any(kills), "each time it was done before it could be killed"
    subprocess.run(proximo("resume", str(broken)), check=True, capture_output=True)
    assert_same_run(whole, broken)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("env", "backend"), CASES)
def test_sixty_thousand_steps_killed_again_and_again(tmp_path: Path, env: str, backend: str) -> None:
    """60,000 steps, a boundary every 20,000, up to five kills at random times."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(train(whole, env, backend, CASES[env, backend], 60_000, 20_000), check=True, capture_output=True)
    updates = updates_done(whole)
    moments = [random.randint(1, updates // 2) for _ in range(5)]
    last = max(path.name for path in (whole / "checkpoints").iterdir())
    kills = until_done(train(broken, env, backend, CASES[env, backend], 60_000, 20_000), broken, moments, last)
    assert_same_run(whole, broken)
    print(f"{env} {backend}: identical after {kills} kills at updates {moments} of {updates}")
    assert kills >= 1
