"""The benchmark of the paper's tables: its order, its memory, its resuming, its page."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # last: mujoco.py there must not hide the package

import mujoco_plan as plan
from mujoco_published import ABLATION, BEST, LABELS, PUBLISHED
from mujoco_table import write_table

from benchmarks import mujoco as benchmark

SHORT = {"horizon": 64, "minibatches": 2, "epochs": 1, "checkpoint_every": 128, "eval_episodes": 1}


def test_the_plan_is_what_was_asked_for() -> None:
    planned = list(plan.jobs([]))
    assert len({job.name for job in planned}) == len(planned)
    seeds = Counter((job.setting.name, job.env) for job in planned)
    for env in plan.TASKS:
        assert seeds["tuned", env] >= 5
        assert seeds["paper", env] >= 5
        assert all(seeds[name, env] >= 3 for name in ("penalty", "trpo", "a2c", "natural"))
    assert all(seeds[name, env] >= 3 for name in ABLATION for env in plan.FASTEST)
    assert ABLATION.keys() == LABELS.keys() <= plan.SETTINGS.keys()
    assert BEST.keys() == set(plan.TASKS)
    assert all(set(column) <= set(plan.TASKS) for columns in PUBLISHED.values() for column in columns.values())


def test_what_is_worth_most_comes_first() -> None:
    """Every seed of all before the next; within a seed PPO, then the other algorithms, then the ablation."""
    groups = (plan.PPO, plan.OTHERS, plan.ABLATION)
    worth = [(job.seed, next(i for i, g in enumerate(groups) if job.setting in g)) for job in plan.jobs([])]
    assert worth == sorted(worth)
    assert {seed for seed, _ in worth} == {0, 1, 2, 3, 4}


def test_only_names_settings_and_tasks() -> None:
    assert {job.setting.name for job in plan.jobs(["paper", "Hopper-v5"])} == {"paper"}
    assert {job.env for job in plan.jobs(["paper", "Hopper-v5"])} == {"Hopper-v5"}
    assert {job.env for job in plan.jobs(["paper"])} == set(plan.TASKS)
    everywhere = [setting.name for setting in plan.SETTINGS.values() if "Walker2d-v5" in setting.tasks]
    assert {job.setting.name for job in plan.jobs(["Walker2d-v5"])} == set(everywhere)


def test_an_algorithm_that_is_not_there_is_passed_over() -> None:
    why = plan.impossible(plan.Job(plan.Setting("new", "no-such-thing", "paper"), "Hopper-v5", 0))
    assert why is not None
    assert "no-such-thing" in why
    assert [plan.impossible(job) for job in plan.jobs(["paper", "tuned"])] == [None] * 70


def test_a_result_of_other_numbers_is_out_of_date() -> None:
    paper, other = plan.SETTINGS["paper"], plan.Setting("paper", "ppo", "paper", {"clip": 0.3})
    row = {"setting": "paper", "env": "Hopper-v5", "seed": 0, "key": paper.key("Hopper-v5")}
    assert benchmark.done([row], plan.Job(paper, "Hopper-v5", 0))
    assert not benchmark.done([row], plan.Job(other, "Hopper-v5", 0))
    assert not benchmark.done([row], plan.Job(paper, "Hopper-v5", 1))
    assert not benchmark.done([row], plan.Job(paper, "Reacher-v5", 0))


def test_results_are_kept_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "mujoco.json"
    for setting, seed, score in (("trpo", 0, 1.0), ("paper", 1, 2.0), ("paper", 0, 3.0), ("paper", 1, 4.0)):
        benchmark.keep(path, {"setting": setting, "env": "Hopper-v5", "seed": seed, "last_100": score})
    rows = benchmark.read(path)["runs"]
    assert [(row["setting"], row["seed"], row["last_100"]) for row in rows] == [
        ("paper", 0, 3.0), ("paper", 1, 4.0), ("trpo", 0, 1.0),
    ]  # fmt: skip
    assert [file.name for file in path.parent.iterdir()] == ["mujoco.json"]


def test_a_run_that_was_killed_goes_on_and_one_that_is_done_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "STEPS", 512)
    monkeypatch.setattr(benchmark, "ALWAYS", ("--compile", "off"))
    job = plan.Job(plan.Setting("short", "ppo", "paper", SHORT), "InvertedPendulum-v5", 0)
    row = benchmark.trained(job, tmp_path)
    assert row is not None
    assert 512 - 64 < row["steps"] <= 512
    assert row["episodes"] > 0
    [out] = tmp_path.iterdir()
    asked: list[list[str]] = []
    run = benchmark.proximo
    monkeypatch.setattr(benchmark, "proximo", lambda words: (asked.append(words), run(words))[1])
    assert benchmark.trained(job, tmp_path) == row
    assert asked == []
    shutil.rmtree(max((out / "checkpoints").iterdir()))  # as if it had been killed after the checkpoint before
    (out / "eval.jsonl").unlink()
    again = benchmark.trained(job, tmp_path)
    assert [words[0] for words in asked] == ["resume"]
    assert again is not None
    assert {k: v for k, v in again.items() if k not in TIMED} == {k: v for k, v in row.items() if k not in TIMED}
    assert [point[::2] for point in again["curve"]] == [point[::2] for point in row["curve"]]


TIMED = ("seconds", "steps_per_second", "curve")


def test_a_run_that_fails_is_said_and_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = plan.Job(plan.Setting("broken", "ppo", "paper", {"clip": "wide"}), "InvertedPendulum-v5", 0)
    (tmp_path / "mujoco.json").write_text(json.dumps({"random": {}, "runs": []}))
    monkey = job.setting
    object.__setattr__(monkey, "numbers", lambda env: {"steps": 512})  # let it through to the command, which refuses
    assert benchmark.trained(job, tmp_path / "work") is None
    assert "broken-InvertedPendulum-v5-0 failed: " in capsys.readouterr().out


def test_the_page_says_what_was_reached_and_what_not(tmp_path: Path) -> None:
    def row(setting: str, env: str, seed: int, share: float) -> dict[str, Any]:
        final = -50 + share * (BEST[env] + 50)
        curve = [[i * 10_000, i * 2.0, -50 + (final + 50) * i / 100] for i in range(101)]
        evals = [[i * 100_000, -50 + (final + 50) * i / 10] for i in range(11)]
        more = dict(eval_mean=final, steps=999_424, last_100=final)
        more["steps_per_second"] = 5000 if setting != "trpo" else 2000
        return dict(setting=setting, env=env, seed=seed, curve=curve, evals=evals, machine="m", versions={}, **more)

    shares = {"tuned": 1.2, "paper": 0.8, "trpo": 0.4, "penalty": 0.45, "clip-0.1": 0.2}
    rows = [row(name, env, seed, share) for name, share in shares.items() for env in plan.TASKS for seed in range(3)]
    chance = {env: {"mean": -50.0} for env in plan.TASKS}
    path = tmp_path / "mujoco.json"
    path.write_text(json.dumps({"random": chance, "runs": rows}))
    write_table(path)
    page = path.with_suffix(".md").read_text()
    assert "`tuned` reaches the best published PPO on 7 of 7 tasks." in page
    assert "`paper` reaches the best published PPO on 0 of 7 tasks; not on HalfCheetah-v5 (4,617 of 5,784)" in page
    assert "| tuned | 1.20 (1.20 to 1.20) | 1.20 (1.20 to 1.20) | 21 |" in page
    assert "| clipping, ε = 0.1 | 0.25 (0.25 to 0.25) | 9 | 0.25 (0.25 to 0.25) | 21 | 0.76 |" in page
    assert "| clipping, ε = 0.2 | 1.00 (1.00 to 1.00) | 9 | 1.00 (1.00 to 1.00) | 21 | 0.82 |" in page
    assert re.search(r"^\| Hopper-v5 \| 41[678]k, 83 s \| 62[567]k, 125 s \| never \| never \|$", page, re.MULTILINE)
    assert "| Hopper-v5 | 200 | 200 | 200 | 500 | 2.5 |" in page
    assert "pilot" in page
    for name in ("steps", "seconds", "surrogates"):
        assert (tmp_path / f"mujoco-{name}.png").stat().st_size > 10_000
        assert f"(mujoco-{name}.png)" in page
