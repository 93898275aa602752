"""What is told of a run while it trains: finished episodes, and TensorBoard's events."""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

from proximo.run.events import EventFile
from proximo.sources.episodes import WINDOW, Episodes


@pytest.mark.parametrize("ending", [0.0, 0.02, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("lanes", [1, 3, 150])
def test_episodes_are_those_of_a_walk_step_by_step(ending: float, lanes: int) -> None:
    random = np.random.default_rng(lanes)
    episodes, told = Episodes(), deque[tuple[float, int]](maxlen=WINDOW)
    episodes.restart(lanes)
    sums, lengths, count = np.zeros(lanes), np.zeros(lanes, int), 0
    for steps in (1, 7, 30, 2):
        reward = random.integers(-9, 9, (steps, lanes)).astype(np.float32)
        mask, ended = random.random((steps, lanes)) < 0.9, random.random((steps, lanes)) < ending
        reward[~mask] = 0
        for t in range(steps):
            sums, lengths = sums + reward[t], lengths + mask[t]
            for lane in np.flatnonzero(ended[t]):
                told.append((sums[lane], lengths[lane]))
                sums[lane], lengths[lane], count = 0, 0, count + 1
        episodes.add(reward, mask, ended)
        seen = episodes.metrics()
        assert seen["episodes"] == count
        if count:
            assert seen["return_mean"] == pytest.approx(np.mean([each[0] for each in told]), abs=1e-9)
            assert seen["length_mean"] == pytest.approx(np.mean([each[1] for each in told]), abs=1e-9)
        else:
            assert seen["return_mean"] is None


def test_a_huge_reward_leaves_no_trace_in_the_next_episode() -> None:
    episodes = Episodes()
    episodes.restart(1)
    reward, ended = np.array([[1e30], [1.0], [2.0]], np.float32), np.array([[True], [False], [True]])
    episodes.add(reward, np.ones_like(ended), ended)
    assert episodes.returns[1] == 3


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    file = EventFile(tmp_path, 0)
    file.scalars(5, {"train/ä": 1.5, "train/long": 1e39, "x" * 300: -2.25e-3})
    file.scalars(2**40, {"train/ä": 2})
    file.close()
    board = EventAccumulator(str(tmp_path)).Reload()
    assert set(board.Tags()["scalars"]) == {"train/ä", "train/long", "x" * 300}
    assert [(event.step, event.value) for event in board.Scalars("train/ä")] == [(5, 1.5), (2**40, 2)]
    assert board.Scalars("train/long")[0].value == math.inf
    assert board.Scalars("x" * 300)[0].value == np.float32(-2.25e-3)


def test_events_that_a_resumed_run_repeats_replace_the_old_ones(tmp_path: Path) -> None:
    for begin, value in ((0, 1.0), (4, 2.0)):
        file = EventFile(tmp_path, begin)
        for step in range(begin + 1, 7):
            file.scalars(step, {"return": value})
        file.close()
    told = [(event.step, event.value) for event in EventAccumulator(str(tmp_path)).Reload().Scalars("return")]
    assert told == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2)]


def test_a_record_that_was_cut_short_ends_the_reading(tmp_path: Path) -> None:
    """As after a power cut: what was whole stays readable."""
    file = EventFile(tmp_path, 0)
    for step in (1, 2):
        file.scalars(step, {"return": 1.0})
    file.close()
    (path,) = tmp_path.iterdir()
    whole = len(list(RawEventFileLoader(str(path)).Load()))
    path.write_bytes(path.read_bytes()[:-3])
    assert len(list(RawEventFileLoader(str(path)).Load())) == whole - 1
