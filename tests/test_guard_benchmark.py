"""The benchmark of the guard: far from a bound and near it, what it says of a limit, and how it ends."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # last: mujoco.py there must not hide the package

import guard
from works import CARTPOLE

SMALL = guard.of_work(replace(CARTPOLE, envs=2, horizon=32, epochs=2, minibatch=32))
A2C = guard.Case("CartPole-v1", "a2c")


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "COMPILE", "off")
    monkeypatch.setattr(guard, "MAKINGS", 2)


@pytest.mark.parametrize("case", [SMALL, A2C], ids=lambda case: case.algo)
@pytest.mark.parametrize(("near_it", "share"), [(False, 0.0), (True, 1.0)])
def test_near_the_bound_every_update_is_measured_in_float64_and_none_is_cut(
    near_it: bool, share: float, case: guard.Case
) -> None:
    """That none is cut `measured` asserts itself, by comparing weights with a run that has no bound."""
    row = guard.measured(case, 0.0, near_it)
    assert row["near"] == share
    assert row["pairs"] == 2 * guard.WARM
    assert len(row["makings"]) == 2
    assert row["bound"] == ("near" if near_it else "far")
    assert (row["fixed"] is not None) == near_it


def test_what_one_bound_for_all_updates_meets_by_hand() -> None:
    """The median is 1: a bound of 1.075 is near 1 and 1.1, and not 0.5; 1.1 and 2 exceed it."""
    found = guard.fixed(np.array([0.5, 1.0, 1.0, 1.1, 2.0]))
    assert found == {"bound": pytest.approx(1.075), "near": 0.6, "over": 0.4}


def test_costs_by_hand() -> None:
    """One making in which the guard costs 1, 2 and 6 %, and one in which it costs 4 %, of cycles twice as long."""
    makings = [np.array([[1.0, 1.01], [1.0, 1.02], [1.0, 1.06]]), np.array([[2.0, 2.08]] * 3)]
    found = guard.costs(makings)
    assert found["makings"] == pytest.approx([0.02, 0.04])
    assert found["cost"] == pytest.approx(0.03)
    assert found["cost_of_sums"] == pytest.approx((0.01 + 0.02 + 0.06 + 3 * 0.08) / 9)
    assert found["cycle_ms"] == pytest.approx(1500)
    assert 0.01 <= found["cost_low"] < 0.03 < found["cost_high"] <= 0.06


def row(env: str, bound: str, low: float, high: float) -> dict[str, Any]:
    cost = dict(cost=(low + high) / 2, cost_low=low, cost_high=high, cost_of_sums=low, pairs=9, cycle_ms=1.0)
    told = dict(env=env, algo="ppo", lanes=1, horizon=2, near=0.0, fixed=None, settle_ms=0.1, load_before=0.0)
    return told | cost | dict(bound=bound)


def test_what_is_above_the_limit_is_marked_and_far_from_the_bound_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row("A", "far", 0.01, 0.02), row("A", "near", 0.05, 0.06), row("B", "far", 0.02, 0.04)]
    assert [guard.verdict(each) for each in rows] == ["within", "**above**", "not told apart"]
    assert guard.too_dear(rows) is None
    monkeypatch.setattr(guard, "CASES", guard.CASES[:2])
    found = iter([*rows, row("B", "near", 0.02, 0.04), *rows[:2], row("B", "far", 0.031, 0.04), rows[1]])
    monkeypatch.setattr(guard, "measured", lambda *_: next(found))
    monkeypatch.setattr(sys, "argv", ["guard.py", "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        guard.main()
    assert not ended.value.code
    with pytest.raises(SystemExit) as ended:
        guard.main()
    told = "far from its bound the guard costs more than 3%: ppo on B 3.55%"
    assert ended.value.code == told  # and so the status is 1
    page = capsys.readouterr().out
    assert "| A | ppo | 1 × 2 | near | 0% | 1.00 | 0.100 | 5.50% [5.00%, 6.00%] | **above** |" in page
    assert len(json.loads((tmp_path / "guard.json").read_text())["works"]) == 4
