"""Alarms: told when they begin, from the run's own files, and about nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proximo.run.language.plan import LanguageRun
from proximo.run.language.watch import Watch

CALM: dict[str, Any] = dict(kl_ref=0.1, length_mean=10.0, repetition=0.1, entropy=2.0)


def watched(folder: Path, rows: list[dict[str, Any]], limits: LanguageRun, anew: int | None = None) -> list[list[str]]:
    """What each row raised; the watch begins anew, as a resumed run's does, before row `anew`."""
    watch, found = Watch(limits), []
    for step, row in enumerate(rows):
        row = {"step": step, **row}
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        watch = Watch(limits) if step == anew else watch
        found.append(watch.updated(folder, row))
    return found


@pytest.mark.parametrize(
    ("sign", "words"),
    [
        (dict(kl_ref=25.0), "25 nats a sequence from the reference"),
        (dict(length_mean=31.0), "completions have 31.0 tokens, and had 10.0 at first"),
        (dict(length_mean=3.0), "completions have 3.0 tokens"),
        (dict(repetition=0.5), "50% of the tokens repeat"),
        (dict(entropy=0.1), "the entropy is 0.1 nats a token, and was 2 at first"),
    ],
)
@pytest.mark.parametrize("anew", [None, 1, 2, 3, 4, 8, 15, 17])
def test_an_alarm_is_told_when_it_begins(sign: dict[str, float], words: str, anew: int | None, tmp_path: Path) -> None:
    raised = CALM | sign
    rows = [CALM, CALM, raised, raised, CALM, raised, *[CALM] * 9, raised, *[CALM] * 10, raised]
    found = watched(tmp_path, rows, LanguageRun(), anew)
    news = [i for i, each in enumerate(found) if each]
    assert news == [2, len(rows) - 1]  # around its threshold it is told once; after ten calm updates it is news again
    assert words in found[2][0]
    assert found[2][0].startswith("alarm at update 2: ")


def test_limits_are_the_runs_own_and_may_be_none(tmp_path: Path) -> None:
    wild = CALM | dict(kl_ref=25.0, length_mean=90.0, repetition=0.9, entropy=0.0)
    none = dict.fromkeys(("alarm_kl", "alarm_length", "alarm_repetition", "alarm_entropy", "alarm_gold"))
    assert watched(tmp_path, [CALM, wild], LanguageRun(**none)) == [[], []]
    (tmp_path / "metrics.jsonl").unlink()
    high = LanguageRun(alarm_kl=30.0, alarm_length=10.0, alarm_repetition=0.95, alarm_entropy=None)
    assert watched(tmp_path, [CALM, wild], high) == [[], []]


def test_what_repeats_from_the_start_is_no_news(tmp_path: Path) -> None:
    rows = [CALM | dict(repetition=0.4), CALM | dict(repetition=0.7), CALM | dict(repetition=0.9)]
    assert [len(each) for each in watched(tmp_path, rows, LanguageRun())] == [0, 0, 1]


@pytest.mark.parametrize("anew", [None, 1, 2, 3, 4])
@pytest.mark.parametrize(
    ("gold", "reward", "raised"),
    [
        ([0.0, 1.0, 0.9, 0.7, 0.6], [0, 1, 2, 3, 4], [3]),  # three tenths of what was gained are lost
        ([0.0, 1.0, 0.9, 0.7, 0.6], [0, 1, 0.9, 0.8, 0.7], []),  # the reward fell too: nothing is hacked
        ([0.0, 0.1, 0.2, 0.3, 0.4], [0, 1, 2, 3, 4], []),
        ([1.0, 0.7, 0.6, 0.9, 0.5], [0, 1, 2, 3, 4], [1, 4]),  # it never rose; back in between
    ],
)
def test_gold_that_falls_while_the_reward_rises(
    gold: list[float], reward: list[float], raised: list[int], anew: int | None, tmp_path: Path
) -> None:
    watch, found = Watch(LanguageRun()), []
    for step, (g, r) in enumerate(zip(gold, reward, strict=True)):
        row = {"step": step, "return_mean": r, "gold": g}
        with (tmp_path / "eval.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        watch = Watch(LanguageRun()) if step == anew else watch
        if watch.evaluated(tmp_path, row):
            found.append(step)
    assert found == raised
