"""Control in several processes: each steps its lanes, and all learn from all of them."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import pytest
from safetensors.torch import load_file
from torch import Tensor

from proximo import cli
from tests.processes import launch
from tests.toys import Masked

MASKED = "Masked-v0"
SHAPE = "--envs 4 --horizon 32 --steps 256 --eval-episodes 1 --backend sync --compile off --device cpu --quiet"
UPDATES = 2  # after more of them rounding alone leads episodes apart


def trains(folder: Path, env: str, algo: str, more: str = "") -> None:
    words = [
        "proximo",
        "train",
        env,
        "--algo",
        algo,
        *SHAPE.split(),
        *more.split(),
        "--out",
        str(folder.parent / "run"),
    ]
    gym.register(MASKED, partial(Masked, "observation"))  # type: ignore[arg-type]
    with patch.object(sys, "argv", words):
        cli.main()


def state(run: Path) -> dict[str, Tensor]:
    last = max((run / "checkpoints").iterdir())
    return load_file(last / "model.safetensors") | load_file(last / "state.safetensors")


def rows(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: x for key, x in row.items() if "second" not in key and x is not None} for row in found]


@pytest.mark.parametrize(
    ("env", "algo", "more"),
    [
        (MASKED, "ppo", "--memory transformer --memory-size 8 --sequence 8 --epochs 1 --minibatches 2"),
        ("Pendulum-v1", "ppo", "--epochs 2 --minibatches 4 --normalize-reward --normalize-observation"),
        ("Acrobot-v1", "trpo", ""),
        ("CartPole-v1", "ppo", "--epochs 2 --minibatches 4 --backend async --overlap on"),
    ],
)
def test_two_processes_learn_what_one_does(env: str, algo: str, more: str, tmp_path: Path) -> None:
    """Observations and rewards are normalised by all lanes of all processes; so are the weights those of one."""
    for name, size in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        do = partial(trains, env=env, algo=algo, more=more)
        assert launch(size, do, tmp_path / name / "said") == [0] * size, (tmp_path / name / "said/err-0").read_text()
    one, two = (state(tmp_path / name / "run") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key, wanted in one.items():
        assert (two[key].double() - wanted.double()).abs().max() <= 1e-5 * max(1, wanted.abs().max().item()), key
    ours, theirs = rows(tmp_path / "one" / "run"), rows(tmp_path / "two" / "run")
    assert len(ours) == len(theirs) == UPDATES
    for a, b in zip(ours, theirs, strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-5)


def test_lanes_that_cannot_be_shared_are_told_once(tmp_path: Path) -> None:
    assert launch(3, partial(trains, env="Pendulum-v1", algo="ppo"), tmp_path / "said") == [2] * 3
    (line,) = [line for rank in range(3) for line in (tmp_path / "said" / f"err-{rank}").read_text().splitlines()]
    assert line == "proximo: envs is 4, which 3 processes cannot share evenly"
