"""A mistake costs one line: exit code 2, what is wrong, what to do; a traceback only with --debug; nothing is lost."""

from __future__ import annotations

import importlib.util
import json
import os
import re
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
from gymnasium.spaces import Box, Discrete

import proximo
from proximo.errors import ConfigError, EnvFailure, ProximoError, UnknownName, UnsupportedSpace
from proximo.run import checkpoint
from tests.conftest import Command, Register

SMALL: dict[str, Any] = dict(steps=512, envs=2, horizon=32, epochs=1, minibatches=1, eval_episodes=1)
FLAGS = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", value)] + ["--quiet"]
HERE = os.getpid()
Complaint = Callable[..., str]


@pytest.fixture
def complaint(command: Command, tmp_path: Path) -> Complaint:
    """The one line that a command leaves on stderr: exactly one; and under it the traceback that --debug adds."""

    def said(*argv: object, train: object = None) -> str:
        words = list(argv) if train is None else ["train", train, *FLAGS, "--out", tmp_path / "new", *argv]
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
    assert 'pip install "proximo[box2d]"' in complaint(train="LunarLander-v3")
    assert 'pip install "proximo[mujoco]"' in complaint(train="HalfCheetah-v5")
    assert 'pip install "proximo[envpool]"' in complaint("--backend", "envpool", train="CartPole-v1")
    assert 'pip install "proximo[video]"' in complaint("play", run, "--video", tmp_path / "v.mp4")


class Faulty(gym.Env):
    """Three numbers, two actions, episodes of ten steps; `reset` and `step` say what it returns instead."""

    def __init__(self, reset: Any = None, step: Any = None, length: int = 10, **spaces: gym.Space) -> None:
        self.observation_space = spaces.get("observation", Box(-1, 1, (3,), np.float32))
        self.action_space = spaces.get("action", Discrete(2))
        self.bad_reset, self.bad_step, self.length = reset, step, length

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.taken, made = 0, (np.zeros(3, np.float32), {})
        return made if self.bad_reset is None else self.bad_reset(*made)

    def step(self, action: Any) -> Any:
        self.taken += 1
        made = np.zeros(3, np.float32), 1.0, self.taken >= self.length, False, {}
        return made if self.bad_step is None or self.taken < 5 else self.bad_step(*made)

    def render(self) -> None: ...


def breaks_down(*made: Any) -> Any:
    raise RuntimeError("the simulator\nis gone")


def dies(*made: Any) -> Any:
    if os.getpid() != HERE:  # a worker's process, never this one
        os._exit(1)
    return made


def with_part(index: int, value: Any) -> Callable[..., Any]:
    return lambda *made: (*made[:index], value, *made[index + 1 :])


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "reset raises": (dict(reset=breaks_down), "reset.*RuntimeError.*the simulator is gone"),
    "reset without info": (dict(reset=lambda observation, info: observation), r"reset\(\) must return"),
    "reset of another shape": (dict(reset=with_part(0, np.zeros(4, np.float32))), r"\(4,\), not \(3,\)"),
    "floats for integers": (dict(observation=Box(0, 9, (3,), np.int64)), "float32, not int64"),
    "step raises": (dict(step=breaks_down), "step.*RuntimeError.*the simulator is gone"),
    "step of four": (dict(step=lambda *made: made[:4]), r"step\(\) must return \(observation, reward, terminated"),
    "step of another shape": (dict(step=with_part(0, np.zeros(4, np.float32))), r"\(4,\), not \(3,\)"),
    "a list": (dict(step=with_part(0, [0.0, 0.0, 0.0])), "a list"),
    "text": (dict(step=with_part(0, np.array(["a", "b", "c"]))), "dtype <U1, not float32"),
    "objects": (dict(step=with_part(0, np.zeros(3, object))), "dtype object, not float32"),
    "nan": (dict(step=with_part(0, np.full(3, np.nan, np.float32))), r"observation\[0\] is nan in lane 0"),
    "reward None": (dict(step=with_part(1, None)), "reward None, not one number"),
    "reward of many": (dict(step=with_part(1, np.zeros(2))), "reward .*, not one number"),
    "reward of text": (dict(step=with_part(1, "1")), "reward '1', not one number"),
    "reward infinite": (dict(step=with_part(1, float("inf"))), "reward is inf in lane 0"),
    "terminated yes": (dict(step=with_part(2, "yes")), "terminated = 'yes', not a bool"),
    "truncated None": (dict(step=with_part(3, None)), "truncated = None, not a bool"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("backend", ["auto", "sync", "async"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_environment_is_told_in_one_line(
    fault: str, backend: str, complaint: Complaint, register: Register, tmp_path: Path
) -> None:
    parts, words = FAULTS[fault]
    line = complaint("--backend", backend, train=register(lambda **kwargs: Faulty(**parts)))
    assert re.search(words, line), line
    if backend != "auto" or (tmp_path / "new").exists():  # auto meets the fault before there is a run
        proximo.load(tmp_path / "new")


LETHAL = {"a worker dies": (dict(step=dies), "environment"), "info None": (dict(step=with_part(4, None)), "info")}


@pytest.mark.parametrize("fault", LETHAL)
def test_what_could_hang_the_workers_ends_in_one_line(fault: str, tmp_path: Path) -> None:
    program = (
        "import gymnasium, proximo.cli\nfrom tests.test_bad_input import LETHAL, Faulty\n"
        f"gymnasium.register('Lethal-v0', lambda **kwargs: Faulty(**LETHAL[{fault!r}][0]))\nproximo.cli.main()"
    )
    argv = [
        sys.executable,
        "-c",
        program,
        "train",
        "Lethal-v0",
        *FLAGS,
        "--backend",
        "async",
        "--out",
        tmp_path / "new",
    ]
    done = subprocess.run(map(str, argv), capture_output=True, text=True, timeout=30, cwd=Path(__file__).parents[1])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert re.match(f"proximo: .*{LETHAL[fault][1]}", done.stderr), done.stderr


@pytest.mark.timeout(20)
@pytest.mark.parametrize("backend", ["auto", "sync", "async"])
def test_a_close_that_raises_costs_no_training(
    backend: str, command: Command, register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Faulty, "close", breaks_down)
    name, out = register(lambda **kwargs: Faulty()), tmp_path / "new"
    done = command("train", name, *FLAGS, "--backend", backend, "--out", out)
    assert "Traceback" not in done.err
    assert 512 - 64 < int(checkpoint.all_of(out)[-1].name) <= 512


@pytest.mark.parametrize("backend", ["auto", "sync", "async"])
def test_debug_leads_to_the_line_of_the_environment(
    backend: str, command: Command, register: Register, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    name, out = register(lambda **kwargs: Faulty(step=breaks_down)), tmp_path / "new"
    failed = command("train", name, *FLAGS, "--backend", backend, "--out", out, "--debug")
    told = [failed.err, *(str(warning.message) for warning in recwarn)]  # Gymnasium warns of what a worker raised
    assert "in breaks_down" in "".join(told)


@pytest.mark.parametrize("entry", [breaks_down, lambda **kwargs: "an environment", "json:Nothing"])
def test_an_id_that_cannot_be_made_is_told_in_one_line(entry: Any, complaint: Complaint, register: Register) -> None:
    assert "Testbed0-v0" in complaint(train=register(entry))


WRONG_IN_PYTHON: dict[str, tuple[dict[str, Any], type[ProximoError], str]] = {
    "unknown setting": (dict(learning_rate=1), UnknownName, r"'learning_rate': .*\blr\b"),
    "unknown backend": (dict(backend="rust"), ConfigError, "'rust'.*sync.*async.*envpool"),
    "unknown device": (dict(device="tpu"), ConfigError, "'tpu'.*cpu.*cuda"),
    "unknown algorithm": (dict(algo="pppo"), UnknownName, "did you mean ppo"),
    "unknown preset": (dict(preset="carpole"), UnknownName, "did you mean cartpole"),
    "text for a number": (dict(lr="3e-4"), ConfigError, "lr is '3e-4': it must be float"),
    "a number for layers": (dict(hidden=64), ConfigError, "hidden is 64: it must be "),
    "nan": (dict(entropy_coef=float("nan")), ConfigError, "entropy_coef is nan"),
    "a maker that raises": (dict(env=breaks_down), EnvFailure, "RuntimeError: the simulator is gone"),
    "a maker of text": (dict(env=lambda: "CartPole-v1"), ConfigError, "a str, not a gymnasium.Env"),
    "a maker that needs more": (dict(env=lambda needs: Faulty()), EnvFailure, "needs"),
    "an environment for a maker": (dict(env=Faulty()), ProximoError, "Faulty"),
    "nothing for a maker": (dict(env=None), ProximoError, "None"),
    "lanes that contradict": (dict(env=gym.make_vec("CartPole-v1", 3)), ConfigError, "envs is 2, but .* 3 lanes"),
}


@pytest.mark.parametrize("wrong", WRONG_IN_PYTHON)
def test_a_mistake_in_python_is_a_typed_error(wrong: str, tmp_path: Path) -> None:
    settings, kind, words = WRONG_IN_PYTHON[wrong]
    with pytest.raises(kind, match=words) as error:
        proximo.train(**{"env": "CartPole-v1", **SMALL, "out": tmp_path / "new", **settings})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


UNSERVED: list[gym.Space] = [spaces.Dict(x=Discrete(2)), spaces.Tuple([Discrete(2)]), spaces.Text(5), Box(0, 1, (0,))]
UNSERVED_SEEN = [*UNSERVED, Box(0, 255, (8, 8, 3), np.uint8), Discrete(4), spaces.MultiDiscrete([[2, 3], [4, 5]])]
UNSERVED_SPACES = [("action", space) for space in UNSERVED] + [("observation", space) for space in UNSERVED_SEEN]


@pytest.mark.parametrize(("kind", "space"), UNSERVED_SPACES, ids=str)
def test_a_space_without_a_model_is_named(kind: str, space: gym.Space, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSpace) as error:
        proximo.train(lambda: Faulty(**{kind: space}), backend="sync", out=tmp_path / "new", **SMALL)
    assert " ".join(f"{kind} space {space} is not supported".split()) in str(error.value)
    assert "supported: " in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_what_was_learned_before_a_failure_is_kept_and_goes_on(
    command: Command, register: Register, tmp_path: Path
) -> None:
    left = [150]  # calls of the fault until it strikes

    def tires(*made: Any) -> Any:
        left[0] -= 1
        return made if left[0] > 0 else breaks_down()

    name, out = register(lambda **kwargs: Faulty(step=tires)), tmp_path / "new"
    failed = command("train", name, *FLAGS, "--backend", "sync", "--checkpoint-every", 64, "--out", out)
    assert (failed.code, failed.err.count("\n")) == (2, 1)
    assert int(checkpoint.all_of(out)[-1].name) >= 128
    left[0] = 10**9
    assert command("resume", out, "--quiet").code == 0
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] > 512 - 64


def test_an_environment_that_never_ends(
    command: Command, complaint: Complaint, register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proximo.run.evaluate.LONGEST", 50)
    name, out = register(lambda **kwargs: Faulty(length=10**9)), tmp_path / "endless"
    outcome = command("train", name, *FLAGS, "--out", out)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "--max-episode-steps" in outcome.err
    assert checkpoint.all_of(out)[-1].name == "000000000512", "the training was lost"
    proximo.load(out)
    assert "not ended after 50 steps" in complaint("eval", out)
    assert "no episode has ended yet" in complaint("plot", out, "--out", tmp_path / "p.png")


def test_checkpoints_of_another_run_are_refused(complaint: Complaint, register: Register, run: Path) -> None:
    other = proximo.train(register(lambda **kwargs: Faulty()), out=run.parent / "other", quiet=True, **SMALL)
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other.folder / "checkpoints", run / "checkpoints")
    before = contents(run)
    for argv in (["eval", run], ["play", run, "--video", run / "v.mp4"], ["resume", run, "--steps", 9999]):
        assert "another env: Testbed0-v0, not CartPole-v1" in complaint(*argv)
    assert contents(run) == before


@pytest.mark.parametrize("maker", [lambda **kwargs: Faulty(), lambda: Faulty()])
def test_what_cannot_be_rendered_is_told(maker: Any, complaint: Complaint, register: Register, tmp_path: Path) -> None:
    made = proximo.train(register(maker), out=tmp_path / "run", quiet=True, **SMALL)
    assert "render" in complaint("play", made.folder, "--video", tmp_path / "v.mp4")
    assert not (tmp_path / "v.mp4").exists()
