"""A small finished run, trained once, of which every test that needs one gets a copy; the command, in this process."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import pytest

import proximo
from proximo import cli

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws without a screen


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
