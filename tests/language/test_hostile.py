"""A stranger's folder of a language run does no harm: one short typed line, in bounded time and memory."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings

from proximo import language
from proximo.errors import CheckpointError, ProximoError
from proximo.run import checkpoint
from proximo.run.checkpoint import INFO, MANIFEST, MODEL, STATE, to_json
from proximo.run.language import session
from tests.hostile import Tree, config_of, forge, little_memory, plant, refused
from tests.language.conftest import letters
from tests.language.test_runs import Finished
from tests.test_hostile_files import NOT_OBJECTS, TENSOR_FILES
from tests.test_safety import changed, leaves, mutated

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("quick")]
STEP = 1024  # that `plant` writes


def resume(run: Path) -> object:
    return language.resume(run, reward=letters, quiet=True)


def load(run: Path) -> object:
    return language.load(run)


VERBS: tuple[Callable[[Path], object], ...] = (load, resume)


@pytest.fixture
def trained(finished: Finished) -> Path:
    return finished("grpo").folder


@pytest.fixture
def hostile(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with one checkpoint of step 1,024, of 2,048, which is not trained any further."""
    monkeypatch.setattr(session, "drive", lambda run, quiet, notes: run)
    monkeypatch.setattr(session, "finished", lambda run: run)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run = Path(shutil.copytree(trained, tmp_path / "hostile", ignore=shutil.ignore_patterns("checkpoints")))
    config = config_of(trained)
    planted(run, trained, changed(config, ("run", "steps"), 2048))
    return run


def planted(run: Path, trained: Path, config: Tree, **info: Tree) -> None:
    """Exchange config.json; the checkpoint agrees with what it says of model and data."""
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    plant(run, trained, config, **{"update": STEP, **info})


def good(run: Path) -> Tree:
    return config_of(run)


def test_it_is_a_good_run_before(hostile: Path) -> None:
    for verb in VERBS:
        verb(hostile)


@pytest.mark.slow
def test_wrong_types_and_huge_numbers_in_every_field_of_config(hostile: Path) -> None:
    config = good(hostile)
    assert len(leaves(config)) > 40
    for path in leaves(config):
        for wrong in ({}, [[]], 0, 10**400, 1e300, -1, "x" * 1_000_000, "\x1b[2J\n", None, float("nan")):
            (hostile / "config.json").write_bytes(to_json(changed(config, path, wrong)))
            for verb in VERBS:
                harmless(verb, hostile)


def harmless(verb: Callable[[Path], object], run: Path) -> None:
    """It may do what it is asked, or refuse with an error of ours, which is one line."""
    with little_memory(), contextlib.suppress(ProximoError):
        verb(run)


def test_entries_that_are_missing_or_unknown(hostile: Path) -> None:
    config = good(hostile)
    spoiled = [changed(config, (*at, "extra"), 1) for at in ((), ("run",), ("algorithm",))]
    for tree in [*spoiled, *({k: v for k, v in config.items() if k != name} for name in config)]:
        (hostile / "config.json").write_bytes(to_json(tree))
        refused(hostile, *VERBS)


@pytest.mark.parametrize("junk", NOT_OBJECTS[::4], ids=range(len(NOT_OBJECTS[::4])))
@pytest.mark.parametrize("name", ["config.json", INFO, MANIFEST])
def test_files_that_are_no_json_object(hostile: Path, name: str, junk: bytes) -> None:
    if name == INFO:
        forge(hostile, name, junk)
    else:
        (hostile / name if name == "config.json" else hostile / "checkpoints" / f"{STEP:012d}" / name).write_bytes(junk)
    refused(hostile, *VERBS)


@pytest.mark.parametrize("junk", TENSOR_FILES[::3], ids=range(len(TENSOR_FILES[::3])))
@pytest.mark.parametrize("name", [MODEL, STATE])
def test_tensor_files_that_lie(hostile: Path, name: str, junk: bytes) -> None:
    forge(hostile, name, junk)
    refused(hostile, *VERBS)


def test_tensors_that_do_not_fit(hostile: Path) -> None:
    for name, verbs in ((MODEL, VERBS), (STATE, VERBS[1:])):
        file = hostile / "checkpoints" / f"{STEP:012d}" / name
        good = safetensors.torch.load(file.read_bytes())
        key = next(key for key, value in good.items() if value.dim() == 2)
        one = good[key]
        cases = [{**good, key: bad} for bad in (one.double(), one.half(), one[:1], one[None], one * torch.nan)]
        for tensors in [*cases, {k: v for k, v in good.items() if k != key}, {**good, "extra": one.clone()}, {}]:
            forge(hostile, name, safetensors.torch.save(tensors))
            assert name in refused(hostile, *verbs)
        forge(hostile, name, safetensors.torch.save(good))


@pytest.mark.parametrize(
    ("name", "value"), [("epoch", -1), ("position", -1), ("position", 32), ("position", 2**62)], ids=str
)
def test_places_in_the_data_that_are_none(hostile: Path, name: str, value: int) -> None:
    """There are 32 examples to learn from."""
    file = hostile / "checkpoints" / f"{STEP:012d}" / STATE
    state = safetensors.torch.load(file.read_bytes())
    forge(hostile, STATE, safetensors.torch.save({**state, f"source.{name}": torch.tensor(value)}))
    run: Any = resume(hostile)
    with pytest.raises(CheckpointError, match="the place in the data"):
        run.source.collect(run.agent.policy)


def test_logs_that_are_none(hostile: Path) -> None:
    rows = [b'{"step": 1, "reward": 1e999, "prompt": [1], "completion": {}}', b"[1]", b"\xff", b"[" * 100_000]
    (hostile / "samples.jsonl").write_bytes(b"\n".join([*rows, b'{"step": 9%s}' % (b"9" * 5000), b'{"step": 2}']))
    resume(hostile)
    assert "update 2" in (hostile / "samples.md").read_text()
    for name in ("samples.jsonl", "samples.md"):
        (hostile / name).unlink(missing_ok=True)
        (hostile / name).symlink_to(hostile / "config.json")
    before = (hostile / "config.json").read_bytes()
    refused(hostile, resume)
    assert (hostile / "config.json").read_bytes() == before


def test_random_damage(hostile: Path, trained: Path) -> None:
    config = good(hostile)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(mutated(config))
    def damage(tree: Tree) -> None:
        (hostile / "config.json").write_bytes(to_json(copy.deepcopy(tree)))
        for verb in VERBS:
            harmless(verb, hostile)

    damage()


def test_a_model_that_a_config_names_is_read_and_nothing_else(hostile: Path, tmp_path: Path) -> None:
    """A path to anything: no code runs, nothing is followed that is no model."""
    config = good(hostile)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    places = [str(tmp_path / "pickled"), "/dev/zero", "/etc/passwd", "/", "", "\x00", "x" * 5000, "~"]
    for place in places:
        (hostile / "config.json").write_bytes(to_json(changed(config, ("model",), place)))
        refused(hostile, *VERBS)
        if place:
            (hostile / "config.json").write_bytes(to_json(changed(config, ("data",), place)))
            refused(hostile, resume)
    assert not os.path.exists("ran")


@pytest.fixture
def another(finished: Finished) -> Path:
    return finished("dr_grpo").folder


def test_a_checkpoint_of_another_run(another: Path, hostile: Path) -> None:
    shutil.rmtree(hostile / "checkpoints")
    shutil.copytree(another / "checkpoints", hostile / "checkpoints")
    assert "another algo" in refused(hostile, resume)
    assert checkpoint.latest(hostile, pytest.fail).info["algo"] == "dr_grpo"
