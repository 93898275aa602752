"""A signal to the whole process group, workers included: the update is finished and saved all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proximo.run.checkpoint import all_of, load


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_the_group_finishes_the_update_and_saves(tmp_path: Path, number: signal.Signals, code: int) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "proximo", "train", "CartPole-v1", "--backend", "async", "--envs", "4"]
    command += ["--steps", "10000000", "--out", str(out), "--quiet"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # whatever these tests were started with
    )
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        time.sleep(0.05)
        assert process.poll() is None
    os.killpg(process.pid, number)
    said, complained = process.communicate(timeout=60)
    assert process.returncode == code
    assert "resume" in said
    assert "Traceback" not in complained
    steps = load(all_of(out)[-1]).info["step"]
    assert steps > 0
    last = (out / "metrics.jsonl").read_text().splitlines()[-1]
    assert f'"step": {steps},' in last
