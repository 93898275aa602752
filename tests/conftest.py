"""A small finished run, trained once, to copy or to spoil; the command, in this process; a register of environments."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests side by side would wait for each others' threads

import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import pytest

import proximo
from proximo import cli
from tests.hostile import config_of, plant

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws without a screen
SMALL: dict[str, Any] = dict(steps=512, envs=2, horizon=32, epochs=1, minibatches=2, eval_episodes=1)
TINY = SMALL | dict(minibatches=1)


def flags(name: str, value: Any) -> list[str]:
    """The words that ask for a setting."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]


TINY_FLAGS = [word for name, value in TINY.items() for word in flags(name, value)] + ["--quiet"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: CartPole in four lanes, 2,048 steps, a checkpoint about every 512."""
    out = tmp_path_factory.mktemp("trained") / "run"
    shape = dict(envs=4, horizon=64, minibatches=4, epochs=1)
    schedule = dict(steps=2048, checkpoint_every=512, eval_every=0, eval_episodes=1)
    proximo.train("CartPole-v1", **shape, **schedule, quiet=True, out=out)
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, to break."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]
Complaint = Callable[..., str]
Register = Callable[[Callable[..., object]], str]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`proximo ARGV…` in this process, all that reaches stdout and stderr captured, its children's lines too."""
    monkeypatch.setattr(gym.logger, "min_level", gym.logger.min_level)  # the command changes it

    def run(*argv: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["proximo", *map(str, argv)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        code = end.value.code
        assert isinstance(code, int), code
        return Outcome(code, *capfd.readouterr())

    return run


@pytest.fixture
def complaint(command: Command, tmp_path: Path) -> Complaint:
    """The one line that a command leaves on stderr: exactly one; and under it the traceback that --debug adds."""

    def said(*argv: object, train: object = None) -> str:
        words = list(argv) if train is None else ["train", train, *TINY_FLAGS, "--out", tmp_path / "new", *argv]
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


@pytest.fixture
def register() -> Iterator[Register]:
    """Give a maker of environments an id for the length of a test; returns the id."""
    ids: list[str] = []

    def add(maker: Callable[..., object]) -> str:
        ids.append(f"Testbed{len(ids)}-v0")
        gym.register(ids[-1], maker)  # type: ignore[arg-type]
        return ids[-1]

    yield add
    for name in ids:
        del gym.registry[name]


@pytest.fixture
def hostile(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with one checkpoint, at step 1,024 of 2,048: for `plant` and `forge` to spoil."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nothing here is about crashes
    shutil.copytree(trained, tmp_path / "hostile", ignore=lambda folder, names: {*names} - {"config.json"})
    plant(tmp_path / "hostile", trained, config_of(trained))
    return tmp_path / "hostile"


# Algorithms whose gradient steps differ most; compiling is long, and the others' are compiled in slow runs.
DISTINCT = ("ppo", "a2c", "penalty", "trpo", "reuse")


def rest_slow(names: Iterable[str], kept: Collection[str], *more: Any, marks: Any = ()) -> list[Any]:
    """A parameter set (name, *more) for each name, marked slow but for those that are kept."""
    marks = marks if isinstance(marks, (list, tuple)) else [marks]
    slow = pytest.mark.slow
    return [pytest.param(name, *more, marks=[*marks, *([] if name in kept else [slow])]) for name in names]
