"""Several seeds at once: each is the run it would be alone, whatever becomes of the others and of the parent."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import imageio.v3 as iio
import pytest

from proximo.errors import ConfigError
from proximo.run.checkpoint import none_yet
from proximo.run.seeding import LANES, derived
from proximo.run.seeds import numbers
from proximo.run.seeds_panel import Row, foremost
from tests.conftest import TINY_FLAGS, Command, Complaint
from tests.test_resume import assert_same_run, without_times

PROXIMO = [sys.executable, "-m", "proximo"]
FLAGS = ["--envs", "2", "--horizon", "32", "--minibatches", "2", "--epochs", "4", "--eval-episodes", "2"]
TASK = ["CartPole-v1", *FLAGS, "--steps", "6000", "--checkpoint-every", "2000", "--eval-every", "2000"]
LONG = ["CartPole-v1", *FLAGS, "--steps", "10000000"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeds 0, 1 and 2 of TASK, each trained by a command of its own, at the same time."""
    parent = tmp_path_factory.mktemp("alone")
    argv = [
        [*PROXIMO, "train", *TASK, "--seed", str(k), "--out", str(parent / f"seed-{k}"), "--quiet"] for k in (0, 1, 2)
    ]
    for process in [subprocess.Popen(words, stdout=subprocess.DEVNULL) for words in argv]:
        assert process.wait() == 0
    return parent


def start(*words: object, **how: object) -> subprocess.Popen[str]:
    argv = [*PROXIMO, *map(str, words)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)  # type: ignore[call-overload]


def wait_for(happened: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    for _ in range(4800):
        if happened():
            return
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("it did not happen within four minutes")


def logged(run: Path) -> bool:
    return (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size > 0


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    """Whether a process has ended, its parent having taken note or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_each_seed_is_the_run_it_would_be_alone(
    command: Command, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    out = tmp_path / "all"
    done = command("train", *TASK, "--seeds", "0-1,2", "--jobs", 3, "--out", out)
    assert done.code == 0, done.err
    for seed in ("seed-0", "seed-1", "seed-2"):
        assert (out / seed / "config.json").read_bytes() == (alone / seed / "config.json").read_bytes()
        assert_same_run(out / seed, alone / seed)
    scores = [
        json.loads((out / f"seed-{k}" / "eval.jsonl").read_text().splitlines()[-1])["return_mean"] for k in range(3)
    ]
    score, each, curve, folder = done.out.splitlines()
    assert re.fullmatch(rf"score  {sum(scores) / 3:.1f} ± \d+\.\d over 3 seeds", score)
    assert each == f"each   seed-0 {scores[0]:.1f}, seed-1 {scores[1]:.1f}, seed-2 {scores[2]:.1f}"
    assert (curve, folder) == (f"curve  {out / 'curve.png'}", f"folder {out}")
    assert iio.imread(out / "curve.png").shape[:2] == (540, 960)
    shown = re.sub(r"\x1b\[[\d;?]*\w", "", done.err)
    for part in (
        "preset cartpole",
        "3 seeds, 3 at a time",
        "seed 2",
        "training",
        "steps/s",
        "3 of 3 seeds",
        f"score {scores[0]:.1f}",
    ):
        assert part in shown, part

    monkeypatch.delenv("FORCE_COLOR")
    assert command("plot", out, "--out", tmp_path / "plot.png").code == 0
    assert (tmp_path / "plot.png").read_bytes() == (out / "curve.png").read_bytes()
    assert "holds the runs of 3 seeds: name one of them, such as" in (wrong := command("eval", out)).err
    assert (wrong.code, wrong.err.count("\n"), f"{out}/seed-0\n" in wrong.err) == (2, 1, True)
    assert "is complete: all 3 seeds are done; " in command("resume", out).err


def test_a_signal_asks_every_child_once_and_waiting_costs_nothing(tmp_path: Path) -> None:
    out = tmp_path / "all"
    process = start("train", *LONG, "--seeds", "0-2", "--jobs", 2, "--out", out)
    wait_for(lambda: logged(out / "seed-0") and logged(out / "seed-1"), process)
    children = children_of(process.pid)
    assert len(children) == 2

    def used() -> float:
        words = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    begin, before = time.monotonic(), used()
    time.sleep(2)
    assert used() - before < 0.1 * (time.monotonic() - begin)

    process.terminate()
    said, complained = process.communicate(timeout=60)
    assert process.returncode == 143
    assert f"stopped, saved: 0 of 3 seeds are done; `proximo resume {out}` goes on\n" in said
    assert "Traceback" not in complained
    assert all(map(gone, children))
    for seed in ("seed-0", "seed-1"):
        steps = json.loads((out / seed / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        assert max(path.name for path in (out / seed / "checkpoints").iterdir()) == f"{steps:012d}"
    assert none_yet(out / "seed-2")


def test_interrupted_in_the_second_of_three_and_resumed(command: Command, alone: Path, tmp_path: Path) -> None:
    """The first is left as it is, the third was never begun; the second goes on as it would on its own."""
    out, copy = tmp_path / "all", tmp_path / "copy"
    process = start("train", *TASK, "--seeds", "0-2", "--jobs", 1, "--out", out, "--quiet", start_new_session=True)
    wait_for(lambda: logged(out / "seed-1"), process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, complained = process.communicate(timeout=60)
    assert (process.returncode, complained) == (130, "")
    assert f"stopped, saved: 1 of 3 seeds are done; `proximo resume {out}` goes on\n" in said
    assert none_yet(out / "seed-2")

    shutil.copytree(out, copy)
    before = {path: path.stat().st_mtime_ns for path in (out / "seed-0").rglob("*")}
    done = command("resume", out, "--jobs", 2)
    assert done.code == 0, done.err
    assert f"resuming {out}: 1 of 3 seeds are done\n" in done.err
    assert re.search(r"^score .* over 3 seeds$", done.out, re.MULTILINE)
    assert {path: path.stat().st_mtime_ns for path in (out / "seed-0").rglob("*")} == before
    assert_same_run(out / "seed-0", alone / "seed-0")
    assert_same_run(out / "seed-2", alone / "seed-2")
    assert command("resume", copy / "seed-1", "--quiet").code == 0
    assert_same_run(out / "seed-1", copy / "seed-1")


def test_a_parent_that_is_killed_takes_its_children_along(alone: Path, tmp_path: Path) -> None:
    """Then resuming is exact, even from a folder whose files have the names of modules."""
    out = tmp_path / "all"
    process = start("train", *TASK, "--seeds", "0-1", "--jobs", 2, "--out", out, "--quiet")
    wait_for(lambda: all(logged(out / f"seed-{k}") for k in range(2)), process)
    children = children_of(process.pid)
    process.kill()
    process.communicate()
    wait_for(lambda: all(map(gone, children)))
    (out / "torch.py").write_text("raise SystemExit('a file of the folder was run')")
    argv = [sys.executable, "-P", "-m", "proximo", "resume", ".", "--quiet"]
    done = subprocess.run(argv, cwd=out, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for seed in ("seed-0", "seed-1"):
        assert_same_run(out / seed, alone / seed)


FLAKY = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

class Flaky(CartPoleEnv):
    def reset(self, *, seed=None, options=None):
        if seed == {seed}:
            raise RuntimeError("this seed is unlucky")
        return super().reset(seed=seed, options=options)

gym.register("Flaky-v0", Flaky, max_episode_steps=50)
"""


def test_a_seed_that_fails_stops_no_other(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, out = tmp_path / "flaky.py", tmp_path / "all"
    module.write_text(FLAKY.format(seed=derived(1, LANES, 0)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    done = command("train", "flaky:Flaky-v0", *TINY_FLAGS[:-1], "--seeds", "0-2", "--jobs", 3, "--out", out)
    gym.registry.pop("Flaky-v0")
    assert done.code == 2
    unlucky = "the environment's reset() raised RuntimeError: this seed is unlucky"
    assert f"\nseed 1 failed: {unlucky}\n" in done.err
    assert done.err.endswith(f"\nproximo: seed 1: {unlucky}\n"), done.err
    again = f"proximo resume {out} --env flaky:Flaky-v0"
    assert f"not complete: 2 of 3 seeds are done; `{again}` goes on\n" in done.out
    assert re.search(r"^score .* over 2 seeds$", done.out, re.MULTILINE)
    assert (out / "curve.png").exists()

    module.write_text(FLAKY.format(seed=-1))
    done = command(*again.split()[1:], "--quiet")
    assert (done.code, done.err) == (0, "")
    assert re.search(r"^score .* over 3 seeds$", done.out, re.MULTILINE)


def test_going_on_to_more_steps_names_what_is_damaged(command: Command, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "all"
    for seed in ("seed-3", "seed-10"):
        shutil.copytree(trained, out / seed)
    for path in (out / "seed-10" / "checkpoints").iterdir():
        (path / "model.safetensors").write_bytes(b"")
    done = command("resume", out, "--steps", 3000)
    assert done.code == 2
    assert "skipping a damaged checkpoint: " in done.err
    assert re.match(r"proximo: seed 10: its folder has no checkpoint that can be loaded: ", done.err.splitlines()[-1])
    assert "1 of 2 seeds are done" in done.out
    assert f"proximo resume {out} --steps 3000" in done.out
    assert 2700 < without_times(out / "seed-3" / "metrics.jsonl")[-1]["step"] <= 3000  # type: ignore[operator]


MISTAKES = {
    "--seeds 3-1": "seeds is '3-1': the range 3-1 runs backwards, try 1-3",
    "--seeds 0,1,1": "1 is there twice",
    "--seeds 0-3,2": "2 is there twice",
    "--seeds x": "seeds is 'x': it must be numbers and ranges, such as 0-9 or 0,3,7",
    "--seeds=": "it must be numbers",
    "--seeds 1,,2": "it must be numbers",
    "--seeds -1": "it must be numbers",
    "--seeds 0-2-4": "it must be numbers",
    "--seeds 1.5": "it must be numbers",
    "--seeds 0-9999999999": "at most 1,000",
    "--seeds 4294967296": "seed is 4294967296: it must be at most 4294967295",
    "--seeds 0-1 --seed 2": "--seeds says which seeds to train: leave out --seed",
    "--seeds 0-1 --seed=0": "leave out --seed",
    "--seeds 0-1 --jobs 0": "jobs is 0: at least 1",
    "--jobs 2": "jobs is for several seeds: give --seeds",
    "--seeds 0-1 --hidden 60000 60000": "parameters; at most",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(mistake: str, complaint: Complaint, tmp_path: Path) -> None:
    assert MISTAKES[mistake] in complaint(*mistake.split(), train="CartPole-v1")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_holds_something_is_refused(complaint: Complaint, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "all" / "seed-0")
    train = ["train", "CartPole-v1", *TINY_FLAGS, "--seeds", "0-1", "--out"]
    assert "is not empty: `proximo resume" in complaint(*train, tmp_path / "all")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "is not empty: choose another --out" in complaint(*train, tmp_path / "mine")
    assert "jobs is for several seeds: " in complaint("resume", trained, "--jobs", 2)
    assert "jobs is 0" in complaint("resume", tmp_path / "all", "--jobs", 0)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0-9", [*range(10)]), ("0,3,7", [0, 3, 7]), ("5", [5]), ("0-3,10", [0, 1, 2, 3, 10]), ("7-7,2", [7, 2])],
)
def test_seeds_are_numbers_and_ranges(text: str, seeds: list[int]) -> None:
    assert numbers(text) == seeds
    with pytest.raises(ConfigError):
        numbers(text + ",")


def test_a_low_terminal_shows_those_that_train() -> None:
    states = ["done"] * 5 + ["training", "failed"] + ["waiting"] * 20
    rows = [Row(seed, 10, state=state) for seed, state in enumerate(states)]
    assert [row.seed for row in foremost(rows, 5)] == [5, 6, 7, 8]
    assert foremost(rows, 27) == rows
