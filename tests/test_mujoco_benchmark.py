"""The benchmark of the paper's tables: its order, its memory, its resuming, its page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # last: mujoco.py there must not hide the package

import machine
import mujoco_plan as plan
import mujoco_seconds as seconds
from mujoco_cost import Clock
from mujoco_pictures import curves
from mujoco_published import ABLATION, BEST, LABELS, PUBLISHED
from mujoco_results import Results
from mujoco_table import page, write_table

from benchmarks import mujoco as benchmark
from proximo.run import session

SHORT = {"horizon": 64, "minibatches": 2, "epochs": 1, "checkpoint_every": 128, "eval_episodes": 1}


def test_the_plan_is_what_was_asked_for() -> None:
    planned = list(plan.jobs([]))
    assert len({job.name for job in planned}) == len(planned)
    seeds = Counter((job.setting.name, job.env) for job in planned)
    for env in plan.TASKS:
        assert seeds["tuned", env] >= 5
        assert all(seeds[name, env] >= 3 for name in ("penalty", "trpo", "a2c", "natural"))
    assert all(seeds[name, env] >= 3 for name in ABLATION for env in plan.FASTEST)
    assert all(seeds[job.setting.name, job.env] >= 5 for job in planned if job.setting.algo == "ppo")
    assert ABLATION.keys() == LABELS.keys() <= plan.SETTINGS.keys()
    assert BEST.keys() == set(plan.TASKS)
    assert all(set(column) <= set(plan.TASKS) for columns in PUBLISHED.values() for column in columns.values())


def test_what_is_worth_most_comes_first() -> None:
    """Every seed of all before the next; within a seed PPO, then the other algorithms, then the ablation."""
    groups = (plan.PPO, plan.OTHERS, plan.ABLATION)
    jobs = list(plan.jobs([]))
    worth = [(job.seed - job.setting.first, next(i for i, g in enumerate(groups) if job.setting in g)) for job in jobs]
    assert worth == sorted(worth)
    assert {nth for nth, _ in worth} == {0, 1, 2, 3, 4}
    assert {job.seed for job in jobs if job.setting.name == "tuned"} == {2, 3, 4, 5, 6}  # 0 and 1 chose its numbers


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
    config = paper.config("Hopper-v5")
    told = json.loads(json.dumps({"algorithm": vars(config.algorithm), "network": vars(config.network)}))
    row = {"setting": "paper", "env": "Hopper-v5", "seed": 0, "key": paper.key("Hopper-v5"), "config": told}
    assert benchmark.done([row], plan.Job(paper, "Hopper-v5", 0))
    of_before = told | {"algorithm": {k: v for k, v in told["algorithm"].items() if k != "clip_high"}}
    assert benchmark.done([row | {"config": of_before}], plan.Job(paper, "Hopper-v5", 0))  # which did not know of it
    of_another_default = told | {"algorithm": told["algorithm"] | {"value_coef": 0.25}}
    assert not benchmark.done([row | {"config": of_another_default}], plan.Job(paper, "Hopper-v5", 0))
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
    assert (row["resumed"], again["resumed"]) == (False, True)
    assert {k: v for k, v in again.items() if k not in OTHER} == {k: v for k, v in row.items() if k not in OTHER}
    assert [point[::2] for point in again["curve"]] == [point[::2] for point in row["curve"]]


OTHER = ("seconds", "steps_per_second", "curve", "resumed")


def test_a_run_that_fails_is_said_and_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = plan.Job(plan.Setting("broken", "ppo", "paper", {"clip": "wide"}), "InvertedPendulum-v5", 0)
    (tmp_path / "mujoco.json").write_text(json.dumps({"random": {}, "runs": []}))
    monkey = job.setting
    object.__setattr__(monkey, "numbers", lambda env: {"steps": 512})  # let it through to the command, which refuses
    assert benchmark.trained(job, tmp_path / "work") is None
    assert "broken-InvertedPendulum-v5-0 failed: " in capsys.readouterr().out


SHARES = {"tuned": 1.2, "paper": 0.8, "trpo": 0.4, "penalty": 0.45, "clip-0.1": 0.2}


def row(setting: str, env: str, seed: int, spread: float = 0.1, **more: Any) -> dict[str, Any]:
    """A run that climbs evenly; three seeds end `spread` below, at and above the setting's share."""
    share = SHARES[setting] + spread * ((seed - plan.SETTINGS[setting].first) % 3 - 1)
    final = -50 + share * (BEST[env] + 50)
    curve = [[i * 10_000, i * 2.0, -50 + (final + 50) * i / 100] for i in range(101)]
    evals = [[i * 100_000, -50 + (final + 50) * i / 10] for i in range(11)]
    told = dict(eval_mean=final, steps=999_424, last_100=final, steps_per_second=5000 if setting != "trpo" else 2000)
    told |= dict(curve=curve, evals=evals, machine="m", versions={}, key=plan.SETTINGS[setting].key(env))
    told |= dict(config={"algorithm": {}, "network": {}})
    return dict(setting=setting, env=env, seed=seed) | told | more


def page_of(rows: list[dict[str, Any]], folder: Path) -> str:
    return page(Results(results_of(rows, folder)), Clock(folder), [])


def results_of(rows: list[dict[str, Any]], folder: Path) -> Path:
    path = folder / "mujoco.json"
    path.write_text(json.dumps({"random": {env: {"mean": -50.0} for env in plan.TASKS}, "runs": rows}))
    return path


def everywhere(seeds: int, **more: Any) -> list[dict[str, Any]]:
    firsts = {name: plan.SETTINGS[name].first for name in SHARES}
    return [row(name, env, firsts[name] + n, **more) for name in SHARES for env in plan.TASKS for n in range(seeds)]


def test_the_page_says_what_was_reached_and_what_not(tmp_path: Path) -> None:
    path = results_of(everywhere(3), tmp_path)
    write_table(path)
    text = path.with_suffix(".md").read_text()
    reaches = "reaches the best published column at the end of its runs on"
    assert f"`tuned` {reaches} 7 of 7 tasks, and at its best evaluation on 7 of 7 tasks.\n" in text
    assert f"`paper` {reaches} 0 of 7 tasks (not on HalfCheetah-v5: 4,617 of 5,784; Hopper-v5: " in text
    assert "| tuned | 1.20 (1.17 to 1.23) | 21 | 1.20 (1.15 to 1.25) | 21 |" in text
    assert "| clipping, ε = 0.1 | 0.22 (0.16 to 0.28) | 9 | 0.22 (0.19 to 0.26) | 21 | 0.76 |" in text
    assert "| clipping, ε = 0.2 | 0.89 (0.83 to 0.95) | 9 | 0.89 (0.85 to 0.93) | 21 | 0.82 |" in text
    assert re.search(r"^\| Hopper-v5 \| 41[678]k \| 62[567]k \| never \| never \|$", text, re.MULTILINE)
    for name in ("steps", "seconds", "surrogates"):
        assert (tmp_path / f"mujoco-{name}.png").stat().st_size > 10_000
        assert f"(mujoco-{name}.png)" in text


def test_the_curves_are_those_of_the_runs(tmp_path: Path) -> None:
    """Against steps, and against the seconds that these take side by side, not those of the runs' own clocks."""
    rows = [each for each in everywhere(2) if (each["setting"], each["env"]) != ("paper", "Hopper-v5")]
    rows += [row("paper", "Hopper-v5", seed, curve=[[0, 1, 0], [10**6, 9 + 300 * seed, 100]]) for seed in (0, 1)]
    results = Results(results_of(rows, tmp_path))
    told = {"tasks": [{"env": "Hopper-v5", "seconds": {"paper": 250.0}}]}
    (tmp_path / "mujoco-seconds.json").write_text(json.dumps(told))
    steps, seconds = curves(results), curves(results, Clock(tmp_path))
    assert (steps.get_supxlabel(), seconds.get_supxlabel()) == (
        "environment steps", "seconds of collecting and learning",
    )  # fmt: skip
    for figure, across, panels in ((steps, 1e6, range(7)), (seconds, 250, (1,))):
        for place in panels:
            axes = figure.axes[place]
            assert axes.get_title() == plan.TASKS[place]
            drawn = {line.get_color(): line.get_xydata() for line in axes.lines}
            assert drawn["C1"][-1].tolist() == [across, 100 if place == 1 else pytest.approx(drawn["C1"][-1, 1])]
            assert len(drawn) == (5 if figure is steps else 2)  # tuned, paper, penalty, trpo and the published
        [legend] = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
        assert "paper (up to 2 seeds)" in [text.get_text() for text in legend.get_texts()]
    assert len(seconds.axes[0].lines) == 1  # not measured there


def test_few_seeds_are_called_a_pilot_and_ten_are_not(tmp_path: Path) -> None:
    pilot, verdict = "Fewer than 10 seeds are a pilot, which all of these are.", "That is a pilot's verdict"
    two, three, ten = (page_of(everywhere(seeds), tmp_path) for seeds in (2, 3, 10))
    assert pilot in two
    assert verdict in two
    assert pilot in three
    assert verdict not in three
    assert "pilot" not in ten
    assert "a pilot, which some of these are." in page_of([*everywhere(9), row("paper", "Hopper-v5", 9)], tmp_path)


def test_of_fewer_than_three_runs_no_interval_is_told(tmp_path: Path) -> None:
    thirds = {name: plan.SETTINGS[name].first + 2 for name in SHARES}
    rows = [row for row in everywhere(3) if row["env"] != "Hopper-v5" or row["seed"] != thirds[row["setting"]]]
    text = page_of(rows, tmp_path)
    assert "| tuned | 1.19 (–) | 20 | 1.15 (–) | 14 |" in text
    assert "| clipping, ε = 0.1 | 0.22 (0.16 to 0.28) | 9 | 0.22 (–) | 20 | 0.76 |" in text


def test_the_page_says_whether_the_best_of_a_kind_is_the_papers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def page_where(share: float, spread: float) -> str:
        monkeypatch.setitem(SHARES, "clip-0.1", share)
        monkeypatch.setitem(SHARES, "clip-0.3", 0.3)
        return page_of(everywhere(5, spread=spread), tmp_path)

    said = "The best of each kind here, on the three tasks: clipping, ε = 0."
    assert f"{said}2, as in the paper." in page_where(0.7, 0.0)
    assert f"{said}1 (1.00; the paper's 0.89, apart by their intervals)." in page_where(0.9, 0.001)
    assert "not told apart by so few seeds)." in page_where(0.9, 0.2)
    assert said not in page_of([each for each in everywhere(3) if each["setting"] != "clip-0.3"], tmp_path)


def test_a_lucky_evaluation_is_not_the_end(tmp_path: Path) -> None:
    """Judged by both: as the means over seeds are at the end, and at their largest, which no single seed's is."""
    rows = everywhere(2, spread=0.0)
    for each in rows:
        if (each["setting"], each["env"]) == ("paper", "Hopper-v5"):
            each["evals"][4 + each["seed"]][1] = 4000.0  # each seed once, at other times
            each["evals"][7][1] = BEST["Hopper-v5"] + 1
    text = page_of(rows, tmp_path)
    assert "at the end of its runs on 0 of 7 tasks" in text
    assert "at its best evaluation on 1 of 7 tasks (not on HalfCheetah-v5: " in text
    [line] = [line for line in text.splitlines() if line.startswith("| Hopper-v5 | 2,077 ± 0 (2) |")]
    assert line.startswith("| Hopper-v5 | 2,077 ± 0 (2) | 2,610 | 2,609 | **no** (-532) | yes | 2,609 |")


def test_an_evaluation_that_a_run_lacks_is_that_of_no_run(tmp_path: Path) -> None:
    """The others stay beside those of the same step."""
    rows = everywhere(2, spread=0.0)
    hoppers = [each for each in rows if (each["setting"], each["env"]) == ("paper", "Hopper-v5")]
    hoppers[0]["evals"][9][1] = hoppers[1]["evals"][9][1] = 4000.0
    del hoppers[1]["evals"][4]
    hoppers[0]["evals"][4][1] = 1e6
    assert "| Hopper-v5 | 2,077 ± 0 (2) | 4,000 | 2,609 |" in page_of(rows, tmp_path)


def test_a_task_with_more_seeds_weighs_no_more(tmp_path: Path) -> None:
    rows = everywhere(3, spread=0.0)
    rows += [row("tuned", "Hopper-v5", seed, last_100=-50.0) for seed in (5, 6, 7)]
    text = page_of(rows, tmp_path)
    assert "| tuned | 1.11 (" in text  # 1.2 on six tasks, 0.6 on one; of all 24 runs 1.05
    assert "| 24 | 1.20 (1.20 to 1.20) | 21 |" in text  # the first three seeds of each


def test_the_page_names_the_algorithm_and_the_preset_of_each_column(tmp_path: Path) -> None:
    text = page_of(everywhere(3), tmp_path)
    tuned = "| tuned | PPO-Penalty, adaptive KL | penalty |"
    assert f"{tuned} tuned, tuned-swimmer (Swimmer-v5) | – |" in text
    assert "| penalty | PPO-Penalty, adaptive KL | penalty | paper | target_kl 0.01 |" in text
    assert "| natural | natural policy gradient | natural | trust-mujoco | – |" in text
    assert "| a2c | A2C | a2c | a2c-mujoco | – |" in text
    different = (
        "envs 1 for 32, horizon 2048 for 64, gamma 0.9999 for 0.99, anneal_lr False for True, log_std_init 0.0 for -1.0"
    )
    assert f"On Swimmer-v5 `tuned` is `tuned-swimmer` with `--algo recompute`: {different}." in text
    assert "have changed since" not in text
    text = page_of([*everywhere(3), row("trpo", "Hopper-v5", 3, key="another"), row("trpo", "Reacher-v5", 3)], tmp_path)
    assert "numbers that have changed since, and yet to be trained anew: `trpo` (1 runs)." in text


def test_what_an_untrained_policy_reaches_is_said_to_be_at_the_start(tmp_path: Path) -> None:
    rows = everywhere(3)
    for each in rows:
        if (each["setting"], each["env"]) == ("tuned", "Reacher-v5"):
            each["curve"][0][2] = -20.0
    text = page_of(rows, tmp_path)
    assert re.search(r"^\| Reacher-v5 \| at the start \| 62[567]k \|", text, re.MULTILINE)


def test_the_page_says_where_its_runs_come_from(tmp_path: Path) -> None:
    """Rows from before, which say neither, stay readable."""
    rows = everywhere(1)
    for each, (made_at, again) in zip(
        rows, (("aaa", True), ("aaa", False), ("bbb", True), (None, False)), strict=False
    ):
        each |= {"commit": made_at, "resumed": again}
    text = page_of(rows, tmp_path)
    assert f"Commits: aaa (2 runs), bbb (1 runs), not written down ({len(rows) - 3} runs)." in text
    assert f"Resumed after an interruption: 2 of {len(rows)} runs; of {len(rows) - 4} it was not written down." in text


def test_a_commit_is_named_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.commit() is None
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True)
    assert re.fullmatch("[0-9a-f]{7,}", machine.commit() or "")


@dataclass
class Clockwork:
    """Stands for a run whose steps take so long; it slows down as the machine fills up, by a tenth each turn."""

    seconds: float
    load: list[float]
    turns: list[float]

    def turn(self, steps: int) -> float:
        self.load[0] *= 1.1
        self.turns.append(self.seconds)
        return self.seconds * self.load[0]


def test_algorithms_take_turns_and_are_compared_round_by_round(tmp_path: Path) -> None:
    load, turns = [1.0], list[float]()
    clocks: dict[str, Any] = {"paper": Clockwork(2e-4, load, turns), "trpo": Clockwork(1e-4, load, turns)}
    taken = seconds.in_turns(clocks, 4, 4096)
    assert turns == [2e-4, 1e-4, 2e-4, 1e-4, 1e-4, 2e-4, 2e-4, 1e-4, 1e-4, 2e-4]  # the first two compile
    summary = seconds.summed(taken)
    assert summary["ratio"]["paper"] == [1, 1, 1]
    assert summary["ratio"]["trpo"] == pytest.approx(
        [(1.1 + 1 / 1.1) / 4, 1 / 2.2, 1.1 / 2]
    )  # load cancels, but a turn
    assert summary["rounds"]["paper"][0] == pytest.approx(2e-4 * plan.STEPS * 1.1**3, abs=0.01)
    told = {"command": "the command", "commit": "abc", "machine": "m", "versions": {"python": "3"}, "load_before": 1.0}
    told |= {"rounds": 4, "steps": 4096, "tasks": [{"env": "Hopper-v5", **summary}]}
    assert "against PPO" not in page_of(everywhere(3), tmp_path)
    (tmp_path / "mujoco-seconds.json").write_text(json.dumps(told))
    text = page_of(everywhere(3), tmp_path)
    paper, trpo = (summary["seconds"][name] for name in ("paper", "trpo"))
    assert (
        f"| task | paper | trpo |\n|---|---|---|\n| Hopper-v5 | {paper:.0f} | {trpo:.0f}, × 0.50 (0.45 to 0.55) |"
        in text
    )
    assert re.search(r"^\| Hopper-v5 \| 41[678]k \| 62[567]k, .* s \| never \| never \|$", text, re.MULTILINE)
    assert "10 iterations of conjugate gradient whose Fisher-vector products are taken on 10 % of the rows" in text
    assert (
        "320 gradient steps of 128 rows (20 epochs). PPO takes 320 of 64 rows (10 epochs) with policy and value" in text
    )


def test_what_is_timed_is_what_is_trained() -> None:
    for name in (*seconds.NAMES, "clip-0.3"):  # the last has a number that is asked for over its preset
        setting = plan.SETTINGS[name]
        for env in setting.tasks:
            made = session.preset_config(*seconds.asked_of(setting, env))[0]
            assert (made.algorithm, made.network) == (setting.config(env).algorithm, setting.config(env).network)
            assert made.run.envs == setting.config(env).run.envs
