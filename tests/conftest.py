"""A small finished run, trained once, of which every test that needs one gets a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import proximo


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
