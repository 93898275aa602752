"""A faulty environment costs one line that says what it did, whatever the backend; what was learned before is kept."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Text, Tuple

import proximo
from proximo.errors import EnvFailure
from proximo.run import checkpoint
from proximo.sources.checked import Checked
from tests.conftest import TINY, TINY_FLAGS, Command, Complaint, Register
from tests.toys import Faulty, breaks_down

HERE = os.getpid()


def dies(*made: Any) -> Any:
    if os.getpid() != HERE:  # a worker's process, never this one
        os._exit(1)
    return made


def with_part(index: int, value: Any) -> Callable[..., Any]:
    return lambda *made: (*made[:index], value, *made[index + 1 :])


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "reset raises": (dict(reset=breaks_down), "reset.*RuntimeError.*the simulator is gone"),
    "reset without info": (dict(reset=lambda observation, info: observation), r"reset\(\) must return"),
    "reset of another shape": (dict(reset=with_part(0, np.zeros(4, np.float32))), r"\(4,\), not \(3,\)"),
    "floats for integers": (dict(observation=Box(0, 9, (3,), np.int64)), "float32, not int64"),
    "step raises": (dict(step=breaks_down), "step.*RuntimeError.*the simulator is gone"),
    "step of four": (dict(step=lambda *made: made[:4]), r"step\(\) must return \(observation, reward, terminated"),
    "step of another shape": (dict(step=with_part(0, np.zeros(4, np.float32))), r"\(4,\), not \(3,\)"),
    "a list": (dict(step=with_part(0, [0.0, 0.0, 0.0])), "a list"),
    "text": (dict(step=with_part(0, np.array(["a", "b", "c"]))), "dtype <U1, not float32"),
    "objects": (dict(step=with_part(0, np.zeros(3, object))), "dtype object, not float32"),
    "nan": (dict(step=with_part(0, np.full(3, np.nan, np.float32))), r"observation\[0\] is nan in lane 0"),
    "reward None": (dict(step=with_part(1, None)), "reward None, not one number"),
    "reward of many": (dict(step=with_part(1, np.zeros(2))), "reward .*, not one number"),
    "reward of text": (dict(step=with_part(1, "1")), "reward '1', not one number"),
    "reward infinite": (dict(step=with_part(1, float("inf"))), "reward is inf in lane 0"),
    "terminated yes": (dict(step=with_part(2, "yes")), "terminated = 'yes', not a bool"),
    "truncated None": (dict(step=with_part(3, None)), "truncated = None, not a bool"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("backend", ["auto", "sync", "async"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_environment_is_told_in_one_line(
    fault: str, backend: str, complaint: Complaint, register: Register, tmp_path: Path
) -> None:
    parts, words = FAULTS[fault]
    line = complaint("--backend", backend, train=register(lambda **kwargs: Faulty(**parts)))
    assert re.search(words, line), line
    if backend != "auto" or (tmp_path / "new").exists():  # auto meets the fault before there is a run
        proximo.load(tmp_path / "new")


LETHAL = {"a worker dies": (dict(step=dies), "environment"), "info None": (dict(step=with_part(4, None)), "info")}


@pytest.mark.parametrize("fault", LETHAL)
def test_what_could_hang_the_workers_ends_in_one_line(fault: str, tmp_path: Path) -> None:
    program = (
        "import gymnasium, proximo.cli\nfrom tests.test_bad_env import LETHAL, Faulty\n"
        f"gymnasium.register('Lethal-v0', lambda **kwargs: Faulty(**LETHAL[{fault!r}][0]))\nproximo.cli.main()"
    )
    argv = [
        sys.executable,
        "-c",
        program,
        "train",
        "Lethal-v0",
        *TINY_FLAGS,
        "--backend",
        "async",
        "--out",
        tmp_path / "new",
    ]
    done = subprocess.run(map(str, argv), capture_output=True, text=True, timeout=30, cwd=Path(__file__).parents[1])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert re.match(f"proximo: .*{LETHAL[fault][1]}", done.stderr), done.stderr


@pytest.mark.timeout(20)
@pytest.mark.parametrize("backend", ["auto", "sync", "async"])
def test_a_close_that_raises_costs_no_training(
    backend: str, command: Command, register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Faulty, "close", breaks_down)
    name, out = register(lambda **kwargs: Faulty()), tmp_path / "new"
    done = command("train", name, *TINY_FLAGS, "--backend", backend, "--out", out)
    assert "Traceback" not in done.err
    assert 512 - 64 < int(checkpoint.all_of(out)[-1].name) <= 512


@pytest.mark.parametrize("backend", ["auto", "sync", "async"])
def test_debug_leads_to_the_line_of_the_environment(
    backend: str, command: Command, register: Register, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    name, out = register(lambda **kwargs: Faulty(step=breaks_down)), tmp_path / "new"
    failed = command("train", name, *TINY_FLAGS, "--backend", backend, "--out", out, "--debug")
    told = [failed.err, *(str(warning.message) for warning in recwarn)]  # Gymnasium warns of what a worker raised
    assert "in breaks_down" in "".join(told)


@pytest.mark.parametrize("entry", [breaks_down, lambda **kwargs: "an environment", "json:Nothing"])
def test_an_id_that_cannot_be_made_is_told_in_one_line(entry: Any, complaint: Complaint, register: Register) -> None:
    assert "Testbed0-v0" in complaint(train=register(entry))


def test_what_was_learned_before_a_failure_is_kept_and_goes_on(
    command: Command, register: Register, tmp_path: Path
) -> None:
    left = [150]  # calls of the fault until it strikes

    def tires(*made: Any) -> Any:
        left[0] -= 1
        return made if left[0] > 0 else breaks_down()

    name, out = register(lambda **kwargs: Faulty(step=tires)), tmp_path / "new"
    failed = command("train", name, *TINY_FLAGS, "--backend", "sync", "--checkpoint-every", 64, "--out", out)
    assert (failed.code, failed.err.count("\n")) == (2, 1)
    assert int(checkpoint.all_of(out)[-1].name) >= 128
    left[0] = 10**9
    assert command("resume", out, "--quiet").code == 0
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] > 512 - 64


def test_an_environment_that_never_ends(
    command: Command, complaint: Complaint, register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proximo.run.evaluate.LONGEST", 50)
    name, out = register(lambda **kwargs: Faulty(length=10**9)), tmp_path / "endless"
    outcome = command("train", name, *TINY_FLAGS, "--out", out)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "--max-episode-steps" in outcome.err
    assert checkpoint.all_of(out)[-1].name == "000000000512", "the training was lost"
    proximo.load(out)
    assert "not ended after 50 steps" in complaint("eval", out)
    assert "no episode has ended yet" in complaint("plot", out, "--out", tmp_path / "p.png")


@pytest.mark.parametrize("maker", [lambda **kwargs: Faulty(), lambda: Faulty()])
def test_what_cannot_be_rendered_is_told(maker: Any, complaint: Complaint, register: Register, tmp_path: Path) -> None:
    made = proximo.train(register(maker), out=tmp_path / "run", quiet=True, **TINY)
    assert "render" in complaint("play", made.folder, "--video", tmp_path / "v.mp4")
    assert not (tmp_path / "v.mp4").exists()


class Shows(gym.Env):
    """Whatever it is told to, of a tree of everything."""

    observation_space = Dict(
        picture=Box(0, 255, (4, 4), np.uint8), numbers=Box(-1, 1, (3,)), choice=Discrete(3), word=Text(5),
        deep=Tuple([MultiBinary(2), Discrete(4, start=-2)]),
    )  # fmt: skip
    action_space = Discrete(2)

    def __init__(self, **told: Any) -> None:
        numbers, deep = np.zeros(3, np.float32), (np.zeros(2, np.int8), -2)
        self.good = dict(picture=np.zeros((4, 4), np.uint8), numbers=numbers, choice=1, word="ab", deep=deep)
        self.shown, self.t = self.good | told, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self.good, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.shown, 0.0, self.t % 5 == 0, False, {}


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "a picture of floats": (dict(picture=np.zeros((4, 4))), "at /picture of dtype float64, not uint8"),
    "a picture beyond bytes": (
        dict(picture=np.full((4, 4), 300, np.uint16)),
        "at /picture of numbers that uint8 has not",
    ),
    "a picture of another shape": (
        dict(picture=np.zeros((4, 1), np.uint8)),
        r"at /picture of shape \(4, 1\), not \(4, 4\)",
    ),
    "one number for three": (dict(numbers=np.zeros(1, np.float32)), r"at /numbers of shape \(1,\), not \(3,\)"),
    "uneven lists": (dict(numbers=[0.0, [0.0, 1.0]]), "at /numbers of a list, not"),
    "a fraction for a choice": (dict(choice=1.7), "at /choice of dtype float64, not int64"),
    "a number for a word": (dict(word=3), "at /word of a int, not a text"),
    "deep": (dict(deep=(np.full(2, 300), -2)), "at /deep/0 of numbers that int8 has not"),
    "a part left out": (dict(deep=(np.zeros(2, np.int8),)), "no observation/deep/1"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_leaf_that_breaks_its_promise_is_named(misfit: str) -> None:
    told, words = MISFITS[misfit]
    env = Checked(Shows(**told))
    env.reset()
    with pytest.raises(EnvFailure, match=words):
        env.step(0)


def test_leaves_that_only_look_different_are_taken() -> None:
    """What gymnasium makes of them loses nothing."""
    more = dict(numbers=[0.0, 1.0, 0.5], choice=np.int32(2), deep=(np.array([1, 0]), np.array(1)))
    for told in (more, dict(numbers=np.zeros(3), deep=[np.array([True, False]), 1])):
        env = Checked(Shows(**told))
        env.reset()
        for _ in range(3):
            assert env.step(0)[0] is env.env.shown  # type: ignore[attr-defined]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("backend", ["sync", "async"])
def test_a_misfit_is_told_before_it_is_learned_from(backend: str, tmp_path: Path) -> None:
    told = MISFITS["one number for three"][0]
    with pytest.raises(EnvFailure, match="at /numbers of shape"):
        proximo.train(lambda: Shows(**told), out=tmp_path / "run", **TINY, backend=backend)
    assert not any(path.stat().st_size for path in tmp_path.rglob("metrics.jsonl"))
