"""One, two and four processes: the same completions, losses and weights; and what becomes of a run that loses one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from safetensors.torch import load_file

from tests.language import rank_cases
from tests.language.rank_cases import CASES
from tests.processes import launch

BOUND = {"float64": 1e-10, "float32": 1e-5}
NAMES = [case[0] for case in CASES]
MOST = [name for name in NAMES if name not in ("sft", "dpo, odd, in pieces", "grpo", "dapo", "rloo")]
FEW = ["sft, odd, in pieces", "grpo, odd, in pieces", "ppo"]


def must_be_the_same(do: Callable[..., object], size: int, names: Sequence[str], folder: Path) -> None:
    """Every rank ends with the numbers of one process: completions, reports and weights; and with each other's bits."""
    torch.set_num_threads(1)
    (folder / "one").mkdir()
    do(folder / "one", names)
    assert launch(size, partial(do, names=names), folder / "many") == [0] * size, (
        folder / "many" / "err-0"
    ).read_text()
    for precision, bound in BOUND.items():
        for name in names:
            one = load_file(folder / "one" / f"{name}-{precision}-0")
            many = [load_file(folder / "many" / f"{name}-{precision}-{rank}") for rank in range(size)]
            assert all(each.keys() == one.keys() for each in many)
            for key, wanted in one.items():
                assert all(torch.equal(each[key], many[0][key]) for each in many), (name, key)
                error = (many[0][key].double() - wanted.double()).abs().max().item()
                assert error <= bound, (name, precision, key, error)
            moved = one["grad_norm 2"].item()
            assert moved > 0, name


def test_two_ranks_are_one(tmp_path: Path) -> None:
    must_be_the_same(rank_cases.replicated, 2, MOST, tmp_path)


def test_four_ranks_are_one(tmp_path: Path) -> None:
    must_be_the_same(rank_cases.replicated, 4, FEW, tmp_path)


def test_two_ranks_in_shards_are_one(tmp_path: Path) -> None:
    must_be_the_same(rank_cases.sharded, 2, FEW, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("do", [rank_cases.replicated, rank_cases.sharded])
def test_ranks_are_one_in_every_case(do: Callable[..., object], size: int, tmp_path: Path) -> None:
    must_be_the_same(do, size, NAMES, tmp_path)


def said(folder: Path, size: int = 2) -> list[str]:
    """All that all processes wrote to stderr."""
    return [line for rank in range(size) for line in (folder / f"err-{rank}").read_text().splitlines()]


def tensors(run: Path, step: int) -> dict[str, Any]:
    folder = run / "checkpoints" / f"{step:012d}"
    return load_file(folder / "model.safetensors") | load_file(folder / "state.safetensors")


def rows(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [{key: x for key, x in row.items() if "second" not in key} for row in found]


def steps(run: Path) -> list[int]:
    return [int(path.name) for path in sorted((run / "checkpoints").iterdir())]


def near(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all((a[key].double() - b[key].double()).abs().max() <= 1e-5 for key in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that one process made from its beginning to its end; and the model."""
    folder = tmp_path_factory.mktemp("whole")
    rank_cases.folder_with_model(folder / "model")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(gym.logger, "min_level", gym.logger.min_level)  # the command changes it
        with pytest.raises(SystemExit) as end:
            rank_cases.run(folder / "one")
    assert end.value.code == 0
    return folder


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Path:
    (tmp_path / "model").symlink_to(whole / "model")
    return tmp_path


def test_a_run_that_was_told_to_stop_and_resumed_is_that_of_one_process(whole: Path, place: Path) -> None:
    """One of two gets the signal; both end with the same update, saved; both go on, and then there is one."""
    assert launch(2, rank_cases.is_told_to_stop, place / "first") == [128 + 15] * 2
    assert said(place / "first") == []
    assert (place / "first" / "out-0").read_text().startswith("stopped at step")
    assert (place / "first" / "out-1").read_text() == ""
    stopped = steps(place / "run")[-1]
    assert 0 < stopped < 5
    assert launch(2, rank_cases.is_resumed, place / "second") == [0, 0], said(place / "second")
    assert steps(place / "run")[-1] == 5
    assert near(tensors(place / "run", 5), tensors(whole / "run", 5))
    for name in ("metrics.jsonl", "eval.jsonl", "drift.jsonl"):
        ours, theirs = rows(place / "run", name), rows(whole / "run", name)
        assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    assert near(load_file(place / "run/model/model.safetensors"), load_file(whole / "run/model/model.safetensors"))
    assert len([*(place / "run").glob("events*")]) == 2


def test_resuming_with_as_many_is_exact(place: Path) -> None:
    assert launch(2, rank_cases.run, place / "first") == [0, 0]
    (place / "run").rename(place / "uninterrupted")
    assert launch(2, rank_cases.is_told_to_stop, place / "first") == [143, 143]
    assert launch(2, rank_cases.is_resumed, place / "second") == [0, 0]
    ours, theirs = tensors(place / "run", 5), tensors(place / "uninterrupted", 5)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours.keys() | theirs.keys())
    assert rows(place / "run") == rows(place / "uninterrupted")


def test_an_error_in_one_process_ends_all_with_one_line(place: Path) -> None:
    """What was learned until then is saved, and one process can go on."""
    assert launch(2, rank_cases.fails, place / "first") == [2, 2]
    (line,) = said(place / "first")
    assert line.startswith("proximo: the reward reward raised ZeroDivisionError"), line
    assert steps(place / "run") == [0, 2]
    assert launch(1, rank_cases.is_resumed, place / "second") == [0]
    assert steps(place / "run")[-1] == 5


def test_a_killed_process_ends_all_with_one_line(whole: Path, place: Path) -> None:
    assert launch(2, rank_cases.dies, place / "first") == [2, -9]
    (line,) = said(place / "first")
    assert line.startswith("proximo: a process of this run ended, the last checkpoint stands"), line
    assert launch(1, rank_cases.is_resumed, place / "second") == [0]
    assert near(tensors(place / "run", 5), tensors(whole / "run", 5))


def test_a_mistake_is_told_once(place: Path) -> None:
    (place / "run").mkdir()
    (place / "run" / "something").touch()
    assert launch(2, rank_cases.finds_a_folder_in_use, place / "first") == [2, 2]
    (line,) = said(place / "first")
    assert "run is not empty" in line


def test_a_run_in_shards_is_one_that_any_number_can_resume(whole: Path, place: Path) -> None:
    assert launch(2, rank_cases.runs_in_shards, place / "first") == [0, 0], said(place / "first")
    assert near(tensors(place / "run", 5), tensors(whole / "run", 5))
    assert near(load_file(place / "run/model/model.safetensors"), load_file(whole / "run/model/model.safetensors"))
