"""A mistake costs one line: exit code 2, what is wrong and what to do, the traceback only with --debug, nothing lost."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import proximo
from proximo.errors import ConfigError, EnvFailure, ProximoError, UnknownName, UnsupportedSpace
from proximo.run import checkpoint
from tests.conftest import Command, Register

TINY = "--steps 512 --envs 2 --horizon 32 --epochs 1 --minibatches 1 --eval-episodes 1".split()
SETTINGS: dict[str, Any] = dict(steps=512, envs=2, horizon=32, epochs=1, minibatches=1, eval_episodes=1, quiet=True)
HERE = os.getpid()
Complaint = Callable[..., str]


@pytest.fixture
def complaint(command: Command, tmp_path: Path) -> Complaint:
    """The one line that a command leaves on stderr: exactly one; and under it the traceback that --debug adds."""

    def said(*argv: object, train: object = None) -> str:
        words = list(argv) if train is None else ["train", train, *TINY, "--quiet", "--out", tmp_path / "new", *argv]
        plain = command(*words)
        assert plain.code == 2, plain
        assert "Traceback" not in plain.err + plain.out
        assert plain.err.startswith("proximo: ")
        assert plain.err.count("\n") == 1, plain.err
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        debugged = command(*words, "--debug")
        assert debugged.code == 2
        assert "Traceback (most recent call last)" in debugged.err
        assert debugged.err.endswith(plain.err)
        return plain.err.rstrip()

    return said


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


MISTAKES = {
    "train CartPol-v1": "did you mean CartPole-v1",
    "train Zzz": "proximo list",
    "train no_such_module:Env-v0": "no_such_module'?, which is not installed",
    "train": "which environment.*proximo train CartPole-v1",
    "train CartPole-v1 --algo pppo": "unknown algorithm 'pppo': did you mean ppo",
    "train CartPole-v1 --preset carpole": "unknown preset 'carpole': did you mean cartpole",
    "train CartPole-v1 --envs 2 --minibatches 7": "7 minibatches do not divide.* 64 .*--minibatches 4 or 8",
    "train CartPole-v1 --minibatches 256": "256 minibatches .* at least 2",
    "train CartPole-v1 --steps 10": "10 steps are fewer than one rollout of 256 .*--steps.*--horizon",
    "train CartPole-v1 --lr -1": "lr is -1.0: it must be greater than 0",
    "train CartPole-v1 --lr nan": "lr is nan: .*finite",
    "train CartPole-v1 --clip inf": "clip is inf: .*finite",
    "train CartPole-v1 --gamma 1.5": "gamma is 1.5: .*between 0 and 1",
    "train CartPole-v1 --envs 0": "envs is 0: .*at least 1",
    "train CartPole-v1 --envs 100000000": "rollout of .* is too large",
    "train CartPole-v1 --seed -1": "seed is -1",
    "train CartPole-v1 --hidden 64 0": r"hidden is \(64, 0\)",
    "train CartPole-v1 --device cuda": "finds no GPU: use --device cpu",
    "train CartPole-v1 --out {file}": "{file} is (a file|not a folder)",
    "train CartPole-v1 --out {file}/deeper": "cannot write to {file}/deeper",
    "train CartPole-v1 --out {full}": "{full} is not empty: .*--out",
    "train CartPole-v1 --out {run}": "{run} is not empty: `proximo resume {run}`",
    "train CartPole-v1 --out /proc/none": "cannot write to /proc/none",
    "train --config {full}/none.json": "{full}/none.json cannot be read: No such file",
    "train --config {file}": "{file} is not JSON",
    "train --config {full}": "{full} is not a regular file",
    "train --config {strange}": "{strange}: .*'horizn'.*did you mean horizon",
    "eval {full}": "{full} is not a run",
    "eval {full}/none": "{full}/none does not exist",
    "play {full} --video {full}/v.mp4": "{full} is not a run",
    "play {full}/none --video {full}/v.mp4": "does not exist",
    "resume {full}": "{full} is not a run",
    "resume {full}/none": "does not exist",
    "plot {full} --out {full}/p.png": "{full} is not a run",
    "plot {full}/none --out {full}/p.png": "does not exist",
    "plot --out {full}/p.png": "proximo: (?!.* in :).*(run|folder)",
    "plot {run} --out /proc/none/p.png": "cannot write /proc/none/p.png",
    "plot {run} --out {full}/p.foo": "p.foo.*png",
    "resume {run}": "is complete: .*--steps N",
    "resume {run} --env Pendulum-v1": "trained on CartPole-v1, not on Pendulum-v1",
    "eval {run} --episodes 0": "episodes is 0: at least 1",
    "play {run} --video {full}/v.mp4 --episodes 0": "episodes is 0: at least 1",
    "play {run} --video {full}/v.avi": "v.avi must end in .mp4 or .gif",
    "play {run} --video /proc/none.mp4": "cannot write /proc/none.mp4",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(
    mistake: str, complaint: Complaint, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where a run would land that should not have started
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    places = {name: tmp_path / name for name in ("file", "full", "strange")} | {"run": run}
    places["file"].write_text("{")
    places["full"].mkdir()
    (places["full"] / "notes.txt").write_text("mine")
    places["strange"].write_text((run / "config.json").read_text().replace('"horizon"', '"horizn"'))
    before = contents(tmp_path)
    line = complaint(*mistake.format(**places).split())
    assert pytest.importorskip("re").search(MISTAKES[mistake].format(**places), line), line
    assert contents(tmp_path) == before


FLAGS = {
    "train CartPole-v1 --minibatch 2": "--minibatches",
    "train CartPole-v1 --learning-rate 1": "Unrecognized options: --learning-rate",
    "train CartPole-v1 --backend rust": "'envpool'",
    "train CartPole-v1 --steps many": "--steps",
    "play DIR": "--video",
    "trian CartPole-v1": "train, resume, eval",
}


@pytest.mark.parametrize("argv", FLAGS)
def test_a_wrong_flag_is_named_with_its_neighbours(argv: str, command: Command) -> None:
    outcome = command(*argv.split())
    assert outcome.code == 2
    assert FLAGS[argv] in outcome.err
    assert "Traceback" not in outcome.err


WRONG_SETTINGS: dict[str, tuple[dict[str, Any], type[ProximoError], str]] = {
    "unknown setting": (dict(learning_rate=1), UnknownName, r"'learning_rate': .*\blr\b"),
    "unknown backend": (dict(backend="rust"), ConfigError, "'rust'.*sync.*async.*envpool"),
    "unknown device": (dict(device="tpu"), ConfigError, "'tpu'.*cpu.*cuda"),
    "unknown algorithm": (dict(algo="pppo"), UnknownName, "did you mean ppo"),
    "unknown preset": (dict(preset="carpole"), UnknownName, "did you mean cartpole"),
    "text for a number": (dict(lr="3e-4"), ConfigError, "lr is '3e-4': it must be float"),
    "a number for layers": (dict(hidden=64), ConfigError, "hidden is 64: it must be "),
    "nan": (dict(entropy_coef=float("nan")), ConfigError, "entropy_coef is nan"),
}


@pytest.mark.parametrize("wrong", WRONG_SETTINGS)
def test_a_wrong_setting_in_python_is_a_typed_error(wrong: str, tmp_path: Path) -> None:
    settings, kind, words = WRONG_SETTINGS[wrong]
    with pytest.raises(kind, match=words) as error:
        proximo.train("CartPole-v1", **{**SETTINGS, "out": tmp_path / "new", **settings})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_a_missing_extra_names_its_pip_command(
    complaint: Complaint, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.startswith(("gymnasium.envs.box2d", "gymnasium.envs.mujoco"))]:
        monkeypatch.delitem(sys.modules, module)
    for module in ("Box2D", "mujoco"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it now fails
    find, gone = importlib.util.find_spec, ("envpool", "imageio", "imageio_ffmpeg")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in gone else find(name, *more))
    assert 'pip install "proximo[box2d]"' in complaint(train="LunarLander-v3")
    assert 'pip install "proximo[mujoco]"' in complaint(train="HalfCheetah-v5")
    assert 'pip install "proximo[envpool]"' in complaint("--backend", "envpool", train="CartPole-v1")
    assert 'pip install "proximo[video]"' in complaint("play", run, "--video", tmp_path / "v.mp4")


class Faulty(gym.Env):
    """Three numbers, two actions, episodes of ten steps; from its fifth step on, `fault` spoils what it returns."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, fault: Callable[..., Any] | None = None, length: int = 10, render_mode: Any = None) -> None:
        self.observation_space: gym.Space = spaces.Box(-1, 1, (3,), np.float32)
        self.action_space: gym.Space = spaces.Discrete(2)
        self.fault, self.length = fault, length

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.taken = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        self.taken += 1
        made = np.zeros(3, np.float32), 1.0, self.taken >= self.length, False, {}
        return made if self.fault is None or self.taken < 5 else self.fault(*made)


class Unstartable(Faulty):
    """Its reset raises, with a message of two lines."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        raise RuntimeError("no simulator\non this machine")


class Misshapen(Faulty):
    """Its reset returns four numbers for three."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(4, np.float32), {}


class Whole(Faulty):
    """It promises integers and returns floats."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 9, (3,), np.int64)
