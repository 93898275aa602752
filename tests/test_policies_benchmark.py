"""The pages of benchmarks/policies.py and recurrent.py say what their rows say, and what is not there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # last: mujoco.py there must not hide the package

from benchmarks import policies, recurrent

PONG, REPEAT, TAXI = "Pong-v5", "Repeat previous (4 ago), transformer", "Taxi, masked; a forbidden action raises"


def row(task: str, seed: int, evaluated: float, trained: float, episodes: int) -> dict[str, Any]:
    scores = {"eval_mean": evaluated, "eval_episodes": episodes, "train_return_last_100": trained}
    return {
        "task": task,
        "seed": seed,
        "step": next(each.steps for each in policies.TASKS if each.name == task),
        **scores,
        "seconds": 61.4,
        "machine": "M",
        "versions": {"v": "1"},
    }


def test_the_page_tells_what_was_reached_and_what_was_not_run(tmp_path: Path) -> None:
    rows = [
        row(PONG, 0, 17.5, 18.25, 10) | {"first": [9000, 40.6], "preset": "atari-envpool", "step": 12345},
        row(TAXI, 0, 6.0, 7.8, 20),
    ]
    rows += [row(REPEAT, seed, score, 0.9, 20) for seed, score in ((1, 0.96), (0, 0.94), (2, 0.99))]
    (tmp_path / "policies.json").write_text(json.dumps(rows))
    policies.write_table(tmp_path, tmp_path)
    page = (tmp_path / "policies.md").read_text()
    results, settings = page.split("## Settings")
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in results.splitlines() if line.startswith("| ")}
    assert len(lines) == 1 + len(policies.TASKS)
    cells = "≥ 18 in training | yes | 17.5 | 10 | 18.25 | 9,000 in 41 s | 61 |"
    assert lines[PONG] == f"| {PONG} | 12,345 of 4,000,000 so far | 0 | {cells}"
    assert lines[TAXI] == f"| {TAXI} | 1,000,000 | 0 | ≥ 7 | no: 6 | 6 | 20 | 7.8 | – | 61 |"
    reached = "| 2 of 3; no: 0.94 | 0.94, 0.96, 0.99 | 20 | 0.9, 0.9, 0.9 |"
    assert lines[REPEAT] == f"| {REPEAT} | 1,000,000 | 0, 1, 2 | ≥ 0.95 {reached} – | 61 |"
    assert lines["Racetrack-v0"] == "| Racetrack-v0 | 300,000 | – | – | not run | – | – | – | – | – |"
    assert f"| {PONG} | atari-envpool | precision bfloat16, threads 2 |" in settings
    assert "20 evaluation" not in page


def test_a_trained_policy_is_filmed_and_what_cannot_be_is_told(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(policies, "FILMED", 6)
    video = tmp_path / "policies-Racetrack-v0.mp4"
    policies.film(trained, video)
    policies.film(tmp_path / "nowhere", tmp_path / "other.mp4")
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{video}: 6 frames"
    assert second.startswith(f"no video of {tmp_path / 'nowhere'}: ")
    assert not (tmp_path / "other.mp4").exists()
    (tmp_path / "policies.json").write_text(json.dumps([row(PONG, 0, 1.0, 1.0, 10)]))
    policies.write_table(tmp_path, tmp_path)
    assert "[Racetrack-v0, filmed](policies-Racetrack-v0.mp4)" in (tmp_path / "policies.md").read_text()


def test_the_bar_is_reached_where_training_first_is_above_it() -> None:
    rows = [
        dict(step=step, seconds=step / 9, return_mean=mean) for step, mean in ((1, None), (2, 17), (3, 18), (4, 17))
    ]
    assert policies.first_above(rows, 18) == [3, 0.3]
    assert policies.first_above(rows, 19) is None
    assert policies.first_above(rows, None) is None


def test_ratios_are_of_runs_in_the_same_round() -> None:
    rates = {("E", "none", "off"): [900.0, 600.0, 800.0], ("E", "gru", "off"): [300.0, 100.0, 400.0]}
    rows = [recurrent.row(key, rates) for key in rates]
    assert [row["ratios"] for row in rows] == [[1, 1, 1], [3, 6, 2]]
    told = {"command": "c", "machine": "m", "versions": {"v": "1"}, "load_before": 0.1, "rows": rows}
    *_, first, second = recurrent.table(told).splitlines()
    assert first == "| E | no | none | 800 [600–900] | 1 | – |"
    assert second == "| E | no | gru | 300 [100–400] | 3.00 [2.00–6.00] | yes |"


def test_a_stopped_run_is_told_as_far_as_it_is(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = policies.Task("Stopped", "CartPole-v1", 10_000, None)
    monkeypatch.setattr(policies, "TASKS", (task,))
    (tmp_path / "Stopped-0").symlink_to(trained)
    monkeypatch.setattr(sys, "argv", f"policies.py --so-far --work {tmp_path} --results {tmp_path / 'pages'}".split())
    policies.main()
    steps = json.loads((tmp_path / "pages" / "policies.json").read_text())[0]["step"]
    assert f"| Stopped | {steps:,} of 10,000 so far | 0 |" in (tmp_path / "pages" / "policies.md").read_text()
