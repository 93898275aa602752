"""Exact resume: a run killed with SIGKILL at random times and resumed ends byte for byte as one that never stopped."""

from __future__ import annotations

import json
import random
import shutil
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
COMPILED = [("CartPole-v1", "sync", "on"), ("HalfCheetah-v5", "envpool", "on")]
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


def killed_once(command: list[str], out: Path, after: float) -> int | None:
    """Run a command; SIGKILL it some time after its folder appears. The exit code, or None if it was killed."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / "config.json").exists() and process.poll() is None:
        time.sleep(0.02)
    try:
        return process.wait(timeout=after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def until_done(first: list[str], out: Path, moments: list[float]) -> int:
    """Start, kill at each moment, resume in between, and let the last one finish; how often it was killed."""
    command = first
    for kills, moment in enumerate(moments):
        code = killed_once(command, out, moment)
        if code is not None:
            assert code == 0
            return kills
        command = proximo("resume", str(out))
    subprocess.run(command, check=True, capture_output=True)
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


@pytest.mark.parametrize(("env", "backend", "compile"), [*((*case, "off") for case in CASES), *COMPILED])
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
    begin = time.monotonic()
    subprocess.run(train(whole, env, backend, CASES[env, backend], 60_000, 20_000), check=True, capture_output=True)
    lasted = time.monotonic() - begin
    moments = [random.uniform(0.05, 0.6) * lasted for _ in range(5)]
    kills = until_done(train(broken, env, backend, CASES[env, backend], 60_000, 20_000), broken, moments)
    assert_same_run(whole, broken)
    print(f"{env} {backend}: identical after {kills} kills at {[round(m, 1) for m in moments]} s of {lasted:.0f}")
    assert kills >= 1
