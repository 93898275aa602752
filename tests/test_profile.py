"""`proximo profile` tells the parts of a cycle apart, advises what the numbers support, and leaves nothing behind."""

from __future__ import annotations

import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from proximo import compiler
from proximo.run import clock as clocks
from proximo.run import limits, loop, profile, seeding, session
from proximo.run.advice import advice
from proximo.run.clock import Clock, watching
from proximo.run.config import Resolved, resolved
from proximo.run.limits import Gradient
from proximo.run.log import RunLog
from proximo.run.profile import Cycles, Part, Profile
from proximo.run.run import Run
from proximo.run.signals import Interrupts
from tests.conftest import SMALL, Command, Complaint, Register, flags
from tests.toys import Toy

FLAGS = [word for name, value in (SMALL | dict(compile="off", threads=1)).items() for word in flags(name, value)]
KEYS = (
    "env algo preset horizon envs backend overlap compile device threads notes cycles cycle_ms clock_share "
    "compile_seconds steps_per_second environment_steps_per_second parts gradient_step advice"
)
PARTS = "environment policy buffers evaluation advantages update logging checkpoints rest"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everything short, and every file under the test's own folder."""
    monkeypatch.setattr(profile, "SECONDS", 0.5)
    monkeypatch.setattr(profile, "WARM_SECONDS", 0.1)
    monkeypatch.setattr(limits, "SECONDS", 0.02)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that are built in a test."""
    runs: list[Run] = []
    build = session.build
    monkeypatch.setattr(session, "build", lambda *parts: (runs.append(build(*parts)), runs[-1])[1])
    return runs


def profiled(command: Command, *argv: object) -> dict[str, Any]:
    done = command("profile", *argv, "--json")
    assert (done.code, done.err) == (0, ""), done.err
    assert done.out.count("\n") == 1
    return json.loads(done.out)


def summed(parts: dict[str, Any]) -> float:
    return sum(part["ms"] for part in parts.values())


def owners(run: Run) -> list[Any]:
    """Whatever the clock may have touched."""
    halves = getattr(run.source, "halves", [run.source])
    own = [thing for half in halves for thing in (half, getattr(half, "actor", None), getattr(half, "envs", None))]
    parts = [run.source, *own, run.policy, run.algorithm, run.agent, loop]
    return [part for part in parts if part is not None] + [sys.modules[type(run.algorithm).__module__]]


def wrapped(run: Run) -> list[str]:
    """The attributes that are the clock's."""
    found = [(name, thing) for owner in owners(run) for name, thing in vars(owner).items()]
    return [name for name, thing in found if getattr(thing, "__qualname__", "").startswith("Clock.timed")]


def test_the_parts_sum_to_the_cycle(command: Command) -> None:
    found = profiled(command, "CartPole-v1", *FLAGS)
    assert list(found) == KEYS.split()
    assert list(found["parts"]) == PARTS.split()
    assert (found["env"], found["envs"], found["horizon"], found["compile"]) == ("CartPole-v1", 2, 32, "off")
    assert summed(found["parts"]) == pytest.approx(found["cycle_ms"], rel=0.1)
    assert sum(part["share"] for part in found["parts"].values()) == pytest.approx(1, abs=0.1)
    assert all(part["ms"] > 0 for part in found["parts"].values())
    for name in ("environment", "policy", "evaluation", "update"):
        assert found["parts"][name]["at_best_ms"] > 0
    assert found["steps_per_second"] < found["environment_steps_per_second"]
    assert found["cycles"] >= 3
    assert 0 < found["clock_share"] < 0.2
    gradient = found["gradient_step"]
    assert (gradient["steps"], gradient["rows"], gradient["uncompiled_us"]) == (2, 32, None)
    assert gradient["us"] * 2e-3 == pytest.approx(found["parts"]["update"]["ms"])
    assert 0 < gradient["arithmetic_us"] < gradient["us"]
    assert 1 <= len(found["advice"]) <= 3
    assert found["compile_seconds"] is None


def test_a_gaussians_products_are_counted(command: Command) -> None:
    found = profiled(command, "Pendulum-v1", *FLAGS)
    assert found["gradient_step"]["arithmetic_us"] > 0
    assert found["parts"]["evaluation"]["at_best_ms"] > 0


def test_the_table_names_every_part_and_train_chooses_the_same(command: Command, tmp_path: Path) -> None:
    done = command("profile", "CartPole-v1", *FLAGS)
    assert done.code == 0, done.err
    for words in (*PARTS.split(), "cycle", "steps/s", "gradient step", "GFLOP/s"):
        assert words in done.out, words
    assert command("train", "CartPole-v1", *FLAGS, "--out", tmp_path / "run").err.startswith(done.err)
    assert done.err.count("\n") >= 4  # preset, backend, device, compile


def generators() -> tuple[bytes, bytes, object]:
    numpy: Any = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), numpy[1].tobytes(), random.getstate()


def test_nothing_is_left_behind(built: list[Run], tmp_path: Path) -> None:
    settings = SMALL | dict(compile="off", threads=2)
    before, threads = generators(), torch.get_num_threads()
    torch.set_num_threads(1)
    config, notes = session.preset_config("CartPole-v1", "ppo", "auto", settings)
    profile.profile("CartPole-v1", config, notes, quiet=True)
    assert generators() == before
    assert torch.get_num_threads() == 1
    torch.set_num_threads(threads)
    [run] = built
    assert wrapped(run) == []
    assert run.source.envs is None  # type: ignore[union-attr]
    assert [path.name for path in tmp_path.rglob("*")] == ["temporary"]


def test_nothing_is_left_behind_by_an_environment_that_dies(
    complaint: Complaint, register: Register, built: list[Run], tmp_path: Path
) -> None:
    timed = 0

    class Mortal(Toy):
        def step(self, action: Any) -> Any:
            nonlocal timed
            timed += bool(built and wrapped(built[-1]))
            if timed == 100:  # in the middle of a timed cycle
                timed = 0
                raise RuntimeError("the simulator is gone")
            return super().step(action)

    line = complaint("profile", register(lambda **kwargs: Mortal()), *FLAGS, "--backend", "sync", "--json")
    assert line.endswith("step() raised RuntimeError: the simulator is gone")  # nothing is saved, or to be resumed
    assert [wrapped(run) for run in built] == [[], []]
    assert [path.name for path in tmp_path.rglob("*")] == ["temporary"]


@pytest.mark.parametrize(("lanes", "way"), [(2, "--backend async gives"), (1, "--backend async with more --envs")])
def test_a_slow_environment_is_found(
    lanes: int, way: str, command: Command, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Toy):
        def step(self, action: Any) -> Any:
            time.sleep(0.002)
            return super().step(action)

    monkeypatch.setattr("os.cpu_count", lambda: 4)
    name = register(lambda **kwargs: Slow())
    found = profiled(command, name, *FLAGS, "--backend", "sync", "--envs", lanes)
    environment = found["parts"]["environment"]
    assert environment["share"] > 0.7
    assert environment["ms"] >= 2 * 32 * lanes
    assert environment["at_best_ms"] >= 2 * 32 * lanes * 0.9  # an episode of 20 steps is followed by a reset alone
    assert found["advice"][0].startswith("The environment takes")
    assert way in found["advice"][0]


def test_halves_are_waited_for(command: Command, built: list[Run]) -> None:
    told = profiled(command, "CartPole-v1", *FLAGS, "--backend", "async", "--overlap", "on", "--envs", 4)
    assert told["overlap"] == "on"
    assert summed(told["parts"]) == pytest.approx(told["cycle_ms"], rel=0.1)
    assert {"environment", "policy", "buffers", "evaluation", "update"} <= set(told["parts"])
    assert told["parts"]["environment"]["at_best_ms"] is None
    assert told["parts"]["policy"]["at_best_ms"] > 0
    assert told["environment_steps_per_second"] > told["steps_per_second"]
    assert not wrapped(built[0])
    shown = command("profile", "CartPole-v1", *FLAGS, "--backend", "async", "--overlap", "on", "--envs", 4)
    assert "asking and waiting" in shown.out


def test_tensors_have_one_part_for_environment_and_policy(command: Command) -> None:
    found = profiled(command, "CartPole-v1", *FLAGS, "--backend", "tensor")
    rest = PARTS.split()[2:]
    assert list(found["parts"]) == ["environment and policy", *rest]
    assert summed(found["parts"]) == pytest.approx(found["cycle_ms"], rel=0.1)
    assert found["parts"]["environment and policy"]["at_best_ms"] > 0
    assert "in one graph" in command("profile", "CartPole-v1", *FLAGS, "--backend", "tensor").out


@pytest.mark.skipif(compiler.missing() is not None, reason="nothing can be compiled here")
def test_compiling_is_told_apart_and_done_once(command: Command, built: list[Run]) -> None:
    found = profiled(command, "CartPole-v1", *FLAGS, "--hidden", 8, "--compile", "on")
    assert found["compile"] == "on"
    assert found["compile_seconds"] > found["cycle_ms"] / 1e3
    assert found["gradient_step"]["uncompiled_us"] > 0
    assert len(built[0].algorithm.optimizer.graphs) == 1  # type: ignore[attr-defined]


def test_a_config_is_profiled_as_it_would_be_repeated(command: Command, trained: Path) -> None:
    found = profiled(command, "--config", trained / "config.json", "--horizon", 32)
    assert (found["env"], found["envs"], found["horizon"]) == ("CartPole-v1", 4, 32)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("CartPol-v1", "did you mean CartPole-v1"),
        ("", "which environment.*proximo profile CartPole-v1"),
        ("CartPole-v1 --envs 0", "envs is 0"),
        ("CartPole-v1 --steps 10", "fewer than one rollout"),
        ("--config none.json", "none.json cannot be read"),
    ],
)
def test_a_mistake_is_one_line(argv: str, words: str, complaint: Complaint) -> None:
    assert re.search(words, complaint("profile", *argv.split()))


@pytest.mark.parametrize("flag", ["--out", "--seeds", "--jobs"])
def test_what_makes_folders_is_refused(flag: str, command: Command, tmp_path: Path) -> None:
    done = command("profile", "CartPole-v1", flag, "1")
    assert done.code == 2
    assert flag in done.err
    assert [path.name for path in tmp_path.rglob("*")] == ["temporary"]


def small_run(tmp_path: Path) -> Run:
    settings = SMALL | dict(device="cpu", compile="off", backend="sync")
    config, lanes, _ = session.fitted("CartPole-v1", resolved("CartPole-v1", "ppo", "none", settings))
    seeding.seed_all(0)
    run = session.build("CartPole-v1", config, lanes)
    run.folder = tmp_path
    loop.start_lanes(run)
    return run


def test_the_clock_changes_no_number_and_puts_everything_back(tmp_path: Path) -> None:
    def vector(watch: bool, folder: Path) -> torch.Tensor:
        folder.mkdir()
        run, log = small_run(folder), RunLog(folder, 0)
        try:
            with Interrupts() as interrupts:
                cycles = Cycles(run, log, interrupts)
                cycles.go(0, 1)
                if watch:
                    before = [dict(vars(owner)) for owner in owners(run)]
                    with watching(run, Clock(lambda: None)):
                        assert {"collect", "act", "judge", "to_env", "step", "sgd", "record"} <= set(wrapped(run))
                    for owner, own in zip(owners(run), before, strict=True):
                        assert vars(owner).keys() == own.keys()
                        assert all(vars(owner)[name] is thing for name, thing in own.items())
                    with watching(run, Clock(lambda: None)):
                        cycles.go(0, 3)
                else:
                    cycles.go(0, 3)
            return torch.nn.utils.parameters_to_vector(run.policy.parameters()).detach().clone()
        finally:
            log.close()
            run.source.close()

    with seeding.borrowed_generators():
        assert torch.equal(vector(True, tmp_path / "watched"), vector(False, tmp_path / "plain"))


def test_the_clock_divides_what_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: now)
    clock = Clock(lambda: None)

    def takes(seconds: float, *inner: Callable[[], Any]) -> Callable[[], Any]:
        def call() -> None:
            nonlocal now
            now += seconds
            for each in inner:
                each()

        return call

    step = clock.timed("environment", takes(1))
    collect = clock.timed("buffers", takes(10, step, step))
    update = clock.timed("update", takes(100, step))  # not divided: what it calls is its own
    takes(1000, collect, clock.timed("advantages", takes(10_000, update)))()
    clock.turn("rest")
    seconds = {"environment": 2, "buffers": 10, "update": 101, "advantages": 10_000, "rest": 1000}
    assert clock.spent == seconds
    assert clock.part == "rest"


ABOUT: dict[str, tuple[dict[str, Any], dict[str, float], str | None]] = {
    # settings, shares of the parts, what the first sentence says
    "slow lanes that EnvPool has": (dict(env="HalfCheetah-v5"), dict(environment=0.9), "--backend envpool steps"),
    "one of them": (dict(env="HalfCheetah-v5", envs=1), dict(environment=0.9), "envpool with --envs 4 or more"),
    "lanes in one call": (dict(), dict(environment=0.5), "8 lanes is so whatever their number, more --envs"),
    "lanes in workers": (dict(env="Nobody-v0", backend="async", ms=500.0), dict(environment=0.9), "only a faster"),
    "uncompiled": (dict(), dict(update=0.5, policy=0.2), "Update and policy take 70% .*: --compile on"),
    "no compiler": (dict(missing="there is no g++"), dict(update=0.7), "cannot be compiled, since there is no g"),
    "compiled": (dict(compile="on"), dict(update=0.7), "is compiled, 10.0 times .* another algorithm"),
    "worse compiled": (dict(compile="on", uncompiled=50.0), dict(update=0.7), "--compile off"),
    "at its limit": (dict(compile="on", us=15.0), dict(update=0.7), "near the limit .* another algorithm"),
    "large matrices": (dict(us=9000.0, arithmetic=8000.0), dict(update=0.9), "--threads 2 may share"),
    "few lanes": (dict(envs=1, compile="on"), dict(policy=0.2, buffers=0.2), "for a step of 1 lane, .*more --envs"),
    "many lanes": (dict(envs=64, compile="on"), dict(policy=0.2, buffers=0.2), None),
    "few in tensors": (dict(compile="on"), {"environment and policy": 0.6}, "Environment and policy .*more --envs"),
    "logging": (dict(), dict(logging=0.2, checkpoints=0.1), "Logging takes 20%"),
    "checkpoints": (dict(), dict(logging=0.01, checkpoints=0.1), "Checkpoints .*raise --checkpoint-every"),
    "nothing": (dict(), dict(update=0.2, environment=0.3), None),
}


@pytest.mark.parametrize("case", ABOUT)
def test_advice_follows_from_the_numbers(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, shares, words = ABOUT[case]
    monkeypatch.setattr(compiler, "missing", lambda: facts.get("missing"))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    run = dict(envs=facts.get("envs", 8), backend=facts.get("backend", "sync"), compile=facts.get("compile", "off"))
    config: Resolved = resolved(facts.get("env", "CartPole-v1"), "ppo", "none", run)
    whole = facts.get("ms", 10.0)
    gradient = Gradient(16, 64, facts.get("us", 100.0), facts.get("arithmetic", 10.0), 100.0, facts.get("uncompiled"))
    parts = {name: Part(share * whole, share, None) for name, share in shares.items()}
    said = advice(Profile(config, [], 3, whole, 0.01, None, 1e4, 1e5, parts, gradient))
    if words is None:
        assert said == ["No part stands out."]
    else:
        assert re.search(words, said[0]), said


def test_at_most_three_sentences_the_largest_part_first() -> None:
    config = replace(resolved("HalfCheetah-v5", "ppo", "none", dict(envs=1, backend="sync", compile="off")))
    shares = dict(environment=0.45, policy=0.26, update=0.3, logging=0.11)
    parts = {name: Part(10 * share, share, None) for name, share in shares.items()}
    gradient = Gradient(16, 64, 100.0, 10.0, 100.0)
    said = advice(Profile(config, [], 3, 10.0, 0.01, None, 1e4, 1e5, parts, gradient))
    assert [sentence.split()[0] for sentence in said] == ["Update", "The", "Acting"]
