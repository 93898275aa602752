"""A mistake costs one line: exit code 2, what is wrong, what to do; a traceback only with --debug; nothing is lost."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces import Box, Discrete

import proximo
from proximo.errors import ConfigError, EnvFailure, ProximoError, UnknownName, UnsupportedSpace
from tests.conftest import TINY, Command, Complaint, Register
from tests.toys import Faulty, breaks_down


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Spaceless(gym.Env):
    """What somebody writes first."""

    observation_space = Box(-1, 1, (3,))


MISTAKES = {
    "train CartPol-v1": "did you mean CartPole-v1",
    "train Zzz": "proximo list",
    "train no_such_module:Env-v0": "no_such_module'?, which is neither installed nor in this folder",
    "train": "which environment.*proximo train CartPole-v1",
    "train CartPole-v1 --algo pppo": "unknown algorithm 'pppo': did you mean ppo",
    "train CartPole-v1 --preset carpole": "unknown preset 'carpole': did you mean cartpole",
    "train CartPole-v1 --envs 2 --minibatches 7": "7 minibatches do not divide.* 64 .*--minibatches 4 or 8",
    "train CartPole-v1 --minibatches 256": "256 minibatches .* at least 2",
    "train CartPole-v1 --steps 10": "10 steps are fewer than one rollout of 256 .*--steps.*--horizon",
    "train CartPole-v1 --lr -1": "lr is -1.0: it must be greater than 0",
    "train CartPole-v1 --clip 20": "clip is 20.0: it must be greater than 0 and less than 1",
    "train CartPole-v1 --lr nan": "lr is nan: .*finite",
    "train CartPole-v1 --clip inf": "clip is inf: .*finite",
    "train CartPole-v1 --gamma 1.5": "gamma is 1.5: .*between 0 and 1",
    "train CartPole-v1 --envs 0": "envs is 0: .*at least 1",
    "train CartPole-v1 --envs 100000000": "rollout of .* is too large",
    "train CartPole-v1 --algo reuse --rollouts 2000000": "2,000,000 rollouts of 256 steps are too large: .*--rollouts",
    "train CartPole-v1 --algo trpo_reuse --rollouts 300000": "300,000 rollouts of 1,024 steps are too large",
    "train CartPole-v1 --algo penalty --beta 1e9": "beta is 1e.09: it must be between 9.53674e-07 and 1.04858e.06",
    "train CartPole-v1 --algo penalty --beta 1e-9": "beta is 1e-09: it must be between",
    "train CartPole-v1 --seed -1": "seed is -1",
    "train CartPole-v1 --hidden 64 0": r"hidden is \(64, 0\)",
    "train CartPole-v1 --device cuda": "finds no GPU: use --device cpu",
    "train CartPole-v1 --out {file}": "{file} (?!is not empty)",
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
    "plot --out {full}/p.png": "proximo: (?!.* in :).*(run|folder|DIR)",
    "plot {run} --out /proc/none/p.png": "cannot write /proc/none/p.png",
    "plot {run} --out {full}/p.foo": "p.foo.*png",
    "resume {run}": "is complete: .*--steps N",
    "resume {run} --env Pendulum-v1": "trained on CartPole-v1, not on Pendulum-v1",
    "eval {run} --episodes 0": "episodes is 0: at least 1",
    "eval {run} --seed -1": "seed is -1: it must be from 0",
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
    assert re.search(MISTAKES[mistake].format(**places), line), line
    assert contents(tmp_path) == before


WRONG_FLAGS = {
    "train CartPole-v1 --minibatch 2": "--minibatches",
    "train CartPole-v1 --learning-rate 1": "Unrecognized options: --learning-rate",
    "train CartPole-v1 --backend rust": "'envpool'",
    "train CartPole-v1 --steps many": "--steps",
    "play DIR": "--video",
    "trian CartPole-v1": "train, resume, eval",
    "train CartPole-v1 --algo trpo --lrr 1": "proximo train --algo trpo --help",
    "eval DIR --episode 3": "proximo eval --help",
    "language grpo --model m --data d --steps few": "proximo language grpo --help",
}


@pytest.mark.parametrize("argv", WRONG_FLAGS)
def test_a_wrong_flag_is_named_with_its_neighbours(argv: str, command: Command) -> None:
    outcome = command(*argv.split())
    assert outcome.code == 2
    assert WRONG_FLAGS[argv] in outcome.err
    assert "Traceback" not in outcome.err


def test_a_process_of_its_own_ends_the_same_way() -> None:
    argv = [sys.executable, "-m", "proximo", "train", "CartPol-v1"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("proximo: unknown environment 'CartPol-v1'")


def test_a_missing_extra_names_its_pip_command(
    complaint: Complaint, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.startswith(("gymnasium.envs.box2d", "gymnasium.envs.mujoco"))]:
        monkeypatch.delitem(sys.modules, module)
    for module in ("Box2D", "mujoco"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it now fails
    find, gone = importlib.util.find_spec, ("envpool", "imageio", "imageio_ffmpeg")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in gone else find(name, *more))
    assert 'pip install ".[box2d]"' in complaint(train="LunarLander-v3")
    assert 'pip install ".[mujoco]"' in complaint(train="HalfCheetah-v5")
    assert 'pip install ".[envpool]"' in complaint("--backend", "envpool", train="CartPole-v1")
    assert 'pip install ".[video]"' in complaint("play", run, "--video", tmp_path / "v.mp4")


WRONG_IN_PYTHON: dict[str, tuple[dict[str, Any], type[ProximoError], str]] = {
    "unknown setting": (dict(learning_rate=1), UnknownName, r"'learning_rate': .*\blr\b"),
    "unknown backend": (dict(backend="rust"), ConfigError, "'rust'.*sync.*async.*envpool"),
    "unknown device": (dict(device="tpu"), ConfigError, "'tpu'.*cpu.*cuda"),
    "unknown algorithm": (dict(algo="pppo"), UnknownName, "did you mean ppo"),
    "an algorithm that is a class": (dict(algo=dict), ConfigError, "algo is <class 'dict'>: give a name"),
    "unknown preset": (dict(preset="carpole"), UnknownName, "did you mean cartpole"),
    "text for a number": (dict(lr="3e-4"), ConfigError, "lr is '3e-4': it must be float"),
    "a number for layers": (dict(hidden=64), ConfigError, "hidden is 64: it must be "),
    "nan": (dict(entropy_coef=float("nan")), ConfigError, "entropy_coef is nan"),
    "a maker that raises": (dict(env=breaks_down), EnvFailure, "RuntimeError: the simulator is gone"),
    "a maker of text": (dict(env=lambda: "CartPole-v1"), ConfigError, "a str, not a gymnasium.Env"),
    "a maker that needs more": (dict(env=lambda needs: Faulty()), EnvFailure, "needs"),
    "an environment without a space": (dict(env=lambda: Spaceless()), EnvFailure, "has no action_space: .*gymnasium"),
    "an environment for a maker": (dict(env=Faulty()), ProximoError, "Faulty"),
    "nothing for a maker": (dict(env=None), ProximoError, "None"),
    "lanes that contradict": (dict(env=gym.make_vec("CartPole-v1", 3)), ConfigError, "envs is 2, but .* 3 lanes"),
}


@pytest.mark.parametrize("wrong", WRONG_IN_PYTHON)
def test_a_mistake_in_python_is_a_typed_error(wrong: str, tmp_path: Path) -> None:
    settings, kind, words = WRONG_IN_PYTHON[wrong]
    with pytest.raises(kind, match=words) as error:
        proximo.train(**{"env": "CartPole-v1", **TINY, "out": tmp_path / "new", **settings})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


UNSERVED: list[gym.Space] = [spaces.Sequence(Discrete(2)), spaces.Graph(Box(0, 1, (2,)), None), Box(0, 1, (0,))]
UNSERVED_SPACES = [(kind, space) for kind in ("action", "observation") for space in UNSERVED]
UNSERVED_SPACES += [("action", spaces.Text(5)), ("observation", spaces.OneOf([Discrete(2), Discrete(3)]))]


@pytest.mark.parametrize(("kind", "space"), UNSERVED_SPACES, ids=str)
def test_a_space_without_a_model_is_named(kind: str, space: gym.Space, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSpace) as error:
        proximo.train(lambda: Faulty(**{kind: space}), backend="sync", out=tmp_path / "new", **TINY)
    assert " ".join(f"{kind} space {space} is not supported".split()) in str(error.value)
    assert "supported: " in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_checkpoints_of_another_run_are_refused(complaint: Complaint, register: Register, run: Path) -> None:
    other = proximo.train(register(lambda **kwargs: Faulty()), out=run.parent / "other", quiet=True, **TINY)
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other.folder / "checkpoints", run / "checkpoints")
    before = contents(run)
    for argv in (["eval", run], ["play", run, "--video", run / "v.mp4"], ["resume", run, "--steps", 9999]):
        assert "another env: Testbed0-v0, not CartPole-v1" in complaint(*argv)
    assert contents(run) == before
