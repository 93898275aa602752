"""The command as a user sees it: what it says, stops for and goes on with; and no word of the libraries."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from proximo.algorithms.language import LANGUAGE
from proximo.run.checkpoint import all_of
from tests.conftest import Command
from tests.language.test_runs import Finished, assert_same_run
from tests.test_resume import updates_done

SIZES = ["--batch", 4, "--max-tokens", 6, "--held-out", 0.2, "--eval-prompts", 4, "--threads", 1]
SCHEDULE = ["--checkpoint-every", 50, "--eval-every", 50, "--lr", 1e-3]


def words(model: Path, data: Path, out: Path, steps: int, *more: object) -> list[str]:
    """What follows `proximo`, for a run of GRPO."""
    named = ["--model", model, "--data", data, "--out", out, "--rewards", "exact_match", "--steps", steps]
    return [str(word) for word in ["language", "grpo", *named, *SIZES, *SCHEDULE, *more]]


def test_help(command: Command) -> None:
    code, out, err = command("language", "--help")
    assert (code, err) == (0, "")
    assert all(name in out for name in (*LANGUAGE, "chat", "eval", "Shao et al. 2024", "Rafailov et al. 2023"))
    code, out, err = command("language", "ppo", "--help")
    assert (code, err) == (0, "")
    flags = ("--model", "--data", "--out", "--rewards", "--target-kl", "--lora", "--max-kl", "--stop-drift", "--clip")
    assert all(flag in out for flag in flags)
    code, out, err = command("language")
    assert (code, out) == (2, "")
    assert "which? proximo language sft|reward|ppo" in err
    code, out, _ = command("list")
    assert "algorithms of `proximo language`" in out
    assert all(f"  {name} " in out for name in LANGUAGE)


def test_from_training_to_asking(command: Command, model: Path, data: Path, tmp_path: Path) -> None:
    """All verbs on one run, and nothing on the terminal but what is ours."""
    run = tmp_path / "run"
    code, out, err = command(*words(model, data, run, 4, "--stop-drift", 50))
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["score", "drift", "speed", "curve", "folder"]
    assert "over 4 prompts" in out
    assert "updates/s" in out
    assert [line.split()[0] for line in err.splitlines()] == ["evaluation:"]
    assert (run / "samples.md").read_text().count("\n| ") == 5
    code, out, err = command("resume", run, "--steps", 6, "--quiet")
    assert (code, err) == (0, "")
    code, out, err = command("language", "eval", run, "--prompts", 3)
    assert (code, err) == (0, "")
    assert "over 3 prompts, 6.0 tokens each" in out
    assert "kl_ref" in out
    code, out, err = command("language", "eval", run, "--prompts", 3, "--against", model, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["wins"] == 0.5  # neither has learned it yet
    assert 0 < found["wins_95"][0] < 0.5 < found["wins_95"][1] < 1
    assert command("language", "eval", run, "--data", data, "--temperature", 0.5).code == 0
    likeliest = [command("language", "eval", run, "--temperature", 0, "--json") for _ in range(2)]
    assert likeliest[0] == likeliest[1]
    assert "kl_ref" not in json.loads(likeliest[0].out)
    code, out, err = command("language", "chat", run, "--prompt", "a 1 +", "--max-tokens", 3)
    assert (code, err) == (0, "")
    assert 1 <= len(out.split()) <= 3
    assert command("language", "chat", run, "--prompt", "a 1 +", "--max-tokens", 3).out == out
    assert command("language", "sft", *words(run, data, tmp_path / "second", 1)[2:8], "--steps", 1, *SIZES).code == 0
    for picture, more in (("curve.png", []), ("drift.png", ["--drift"])):
        code, out, err = command("plot", run, "--out", tmp_path / picture, *more)
        assert (code, err) == (0, "")
        assert (tmp_path / picture).stat().st_size > 10_000


def test_chat_asks_until_an_empty_line(command: Command, finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["a 1 +", "", "b"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    code, out, _ = command("language", "chat", finished("sft").folder, "--temperature", 0)
    assert (code, out.count("\n")) == (0, 1)
    assert list(typed) == ["b"]


def test_others_are_scored_by_what_they_learned(command: Command, finished: Finished) -> None:
    assert "over 8 texts" in (found := command("language", "eval", finished("sft").folder).out), found
    assert "perplexity" in found
    for algo in ("dpo", "reward"):
        assert "over 6 pairs" in (found := command("language", "eval", finished(algo).folder, "--prompts", 6).out), (
            found
        )
        assert "accuracy" in found


def started(argv: list[str]) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "proximo", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )


def test_stopped_and_killed_and_resumed_is_the_same_run(
    command: Command, model: Path, data: Path, tmp_path: Path
) -> None:
    """Ctrl-C, then SIGKILL, in the middle of epochs and between checkpoints; then to the end."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert command(*words(model, data, whole, 150, "--quiet")).code == 0
    argv = words(model, data, broken, 150, "--quiet")
    for number, after in ((signal.SIGINT, 20), (signal.SIGKILL, 70)):
        process = started(argv)
        while process.poll() is None and updates_done(broken) < after:
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=100)
        assert (process.returncode, err) == ((-9, "") if number == signal.SIGKILL else (130, ""))
        argv = ["resume", str(broken), "--quiet"]
    (saved,) = [path for path in all_of(broken) if int(path.name) % 50]
    assert 20 <= int(saved.name) < 50
    assert command(*argv).code == 0
    shutil.rmtree(saved)
    assert_same_run(whole, broken)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves(number: int, command: Command, finished: Finished, tmp_path: Path) -> None:
    """Here, and in this process: the update is finished, and what was learned is saved; then it goes on."""
    run = Path(shutil.copytree(finished("sft").folder, tmp_path / "run"))
    before = signal.getsignal(number)

    def when_it_learns() -> None:
        while updates_done(run) < 20:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=when_it_learns, daemon=True).start()
    code, out, err = command("resume", run, "--steps", 100_000, "--quiet")
    assert (code, err) == (128 + number, "")
    assert "saved; `proximo resume" in out
    steps = int(all_of(run)[-1].name)
    assert steps >= 20
    assert signal.getsignal(number) is before
    assert command("resume", run, "--steps", steps + 2, "--quiet").code == 0
