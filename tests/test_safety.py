"""Loading a stranger's folder is safe: no code runs, each refusal is one short typed line, time and memory are bounded.

Here: the package's own sources, config.json, random damage. The other files of a folder are in test_hostile_files.py.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import proximo
from proximo.errors import ProximoError
from proximo.run import checkpoint, session
from proximo.run.checkpoint import INFO, to_json
from tests.conftest import Command
from tests.hostile import Tree, config_of, forge, little_memory, plant, refused, resume

pytestmark = pytest.mark.timeout(10)
MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "runpy", "code", "imp"}
CALLS = {"eval", "exec", "compile", "__import__", "importlib.import_module", "importlib.reload", "os.system"}
CALLS |= {"torch.load", "torch.jit.load", "torch.hub.load", "yaml.load", "np.load", "numpy.load", "os.popen"}
SOURCES = sorted(Path(proximo.__file__).parent.rglob("*.py"))


def dangers(code: str) -> set[str]:
    """What a file imports or names of MODULES and CALLS."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(ast.unparse(node))
    return {name for name in found if name.split(".")[0] in MODULES or name in CALLS}


def test_the_package_names_nothing_that_runs_code() -> None:
    seen = "import pickle.x; from joblib import load; torch.load(f); eval('1'); f = exec; from numpy import load"
    assert dangers(seen) == {"pickle.x", "joblib", "joblib.load", "torch.load", "eval", "exec", "numpy.load"}
    assert len(SOURCES) > 30
    assert {str(path): bad for path in SOURCES if (bad := dangers(path.read_text()))} == {}


def leaves(tree: Tree, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every plain value."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    return [path] if items is None else [leaf for key, value in items for leaf in leaves(value, (*path, key))]


def changed(tree: Tree, path: tuple[Any, ...], value: Tree) -> Tree:
    """A copy with one value exchanged, or added."""
    place = tree = copy.deepcopy(tree)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return tree


@pytest.mark.timeout(60)
def test_wrong_types_in_every_field_of_config(hostile: Path, trained: Path) -> None:
    config = config_of(trained)
    assert len(leaves(config)) > 40
    for path in leaves(config):
        number = isinstance(config[path[0]], dict) and path[-1] not in (
            "device",
            "backend",
            "drift_reference",
            "activation",
            "kind",
        )
        for wrong in [{}, [[]], *(["x", float("nan")] if number else [])]:
            plant(hostile, trained, changed(config, path, wrong))
            refused(hostile, proximo.load)
    spoiled = [changed(config, (*at, "extra"), 1) for at in ((), ("run",), ("algorithm",), ("network",))]
    for tree in [*spoiled, *({k: v for k, v in config.items() if k != name} for name in config)]:
        plant(hostile, trained, tree)
        refused(hostile)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `resume` do everything up to it."""
    monkeypatch.setattr(session, "drive", lambda run, quiet, notes: run)


def test_huge_numbers_in_every_field_of_config(hostile: Path, trained: Path, no_training: None) -> None:
    """Where a number of any size makes sense, it may be taken."""
    config = config_of(trained)
    places = [(path, value) for path in leaves(config) for value in (2**32, 2**63, 10**400, 1e300)]
    for path, value in places:
        if path[0] not in ("env", "algo", "preset", "registered"):
            plant(hostile, trained, changed(config, path, value))
            for verb in (proximo.load, resume):
                with little_memory(), contextlib.suppress(ProximoError):
                    verb(hostile)


BOX: dict[str, Tree] = {"kind": "box", "shape": [4], "dtype": "float32", "low": ["0"] * 4, "high": ["1"] * 4}
VALUES: list[tuple[str, Tree]] = [
    ("algo", "ppq"),
    ("algo", "a" * 3_000_000),
    ("algo", "\x1b[2J\n"),
    ("env", ["x"] * 500_000),
    ("env", {"a" * 3_000_000: 1}),
    ("run backend", "os.system"),
    ("run \x1b[2J\n", 1),
    ("run envs", 2**40),
    ("run steps", 0),
    ("network activation", "__import__"),
    ("network hidden", [2**16] * 64),
    ("network hidden", [10**30]),
    ("network hidden", [1] * 100_000),
    ("network hidden", [5000, 5000]),  # few enough to build, but seconds of drawing them, and not what was saved
    ("spaces", {}),
    ("spaces action", None),
    ("spaces action", {"kind": "dict"}),
    ("spaces action", {"kind": ["x"] * 500_000}),
    ("spaces action", {"kind": "discrete", "n": 10**30, "start": 0}),
    ("spaces action", {"kind": "discrete", "n": 2**62, "start": 0}),
    ("spaces action", {"kind": "multi_discrete", "nvec": [2**62] * 4, "start": [0] * 4}),
    ("spaces action", {"kind": "multi_discrete", "nvec": [], "start": []}),
    ("spaces action", {"kind": "multi_binary", "shape": 10**30}),
    ("spaces action", {"kind": "multi_binary", "shape": [2**32, 2**32]}),
    ("spaces observation", {**BOX, "shape": [2**40]}),
    ("spaces observation", {**BOX, "shape": [0, 2**60], "low": [], "high": []}),
    ("spaces observation", {**BOX, "dtype": "O"}),
    ("spaces observation", {**BOX, "low": ["nan"] * 4}),
    ("spaces observation", {**BOX, "shape": [300_000], "low": ["2"] * 300_000, "high": ["1"] * 300_000}),
]


@pytest.mark.parametrize(("path", "value"), VALUES, ids=[f"{path}-{str(value)[:50]}" for path, value in VALUES])
def test_senseless_and_huge_configs(hostile: Path, trained: Path, path: str, value: Tree) -> None:
    plant(hostile, trained, changed(config_of(trained), tuple(path.split(" ")), value))
    refused(hostile)


@pytest.mark.parametrize(("name", "value"), [("device", "cuda"), ("device", "auto"), ("threads", 10**12)])
def test_what_this_machine_cannot_do(hostile: Path, trained: Path, name: str, value: Tree) -> None:
    assert name != "device" or not torch.cuda.is_available()
    plant(hostile, trained, changed(config_of(trained), ("run", name), value))
    if value == "auto":
        assert resume(hostile).config.run.device == "cpu"
    else:
        refused(hostile, resume)


def test_more_threads_than_a_process_can_have(hostile: Path, trained: Path) -> None:
    """In another process, since they could end this one."""
    plant(hostile, trained, changed(config_of(trained), ("run", "threads"), 100_000))
    words = [sys.executable, "-m", "proximo", "resume", str(hostile), "--quiet"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


def test_no_module_is_imported(
    hostile: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    plant(hostile, trained, {**config_of(trained), "env": "stranger:Thing-v0\n\x1b[2J"})
    assert isinstance(proximo.load(hostile), proximo.Agent)
    assert "stranger:Thing-v0" in refused(hostile, resume)
    verbs = [["eval", hostile], ["play", hostile, "--video", "x.mp4"], ["resume", hostile]]
    for words in [*verbs, ["train", "--config", hostile / "config.json"]]:
        code, _, err = command(*words)
        assert (code, "stranger:Thing-v0" in err) == (2, True)
        assert err.removesuffix("\n").isprintable()
    assert "stranger" not in sys.modules


extremes = [None, True, -1, 0, 1, 3, 2**31, 2**63, 10**30, 10**400, 1.5, float("nan"), float("inf"), "", "box", "a:b"]
plain = st.sampled_from(extremes) | st.text(max_size=4)
junk = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))


@st.composite
def mutated(draw: st.DrawFn, tree: Tree) -> Tree:
    """A tree with up to three values, anywhere, exchanged or removed."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        place, key = tree, draw(st.sampled_from(list(tree)))
        while isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 3)):
            place = place[key]
            key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        if draw(st.integers(0, 3)):
            place[key] = draw(junk)
        else:
            del place[key]
    return tree


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["config.json", INFO])
def test_random_damage(hostile: Path, trained: Path, no_training: None, name: str) -> None:
    config, info = config_of(trained), checkpoint.latest(trained, pytest.fail).info

    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(mutated(config if name == "config.json" else info))
    def damage(tree: Tree) -> None:
        if name == "config.json":
            plant(hostile, trained, tree)
        else:
            forge(hostile, INFO, to_json(tree))
        if name == "config.json":
            with little_memory(), contextlib.suppress(ProximoError):
                agent = proximo.load(hostile)
                agent.act(np.zeros(agent.observation_space.shape or ()))
        with little_memory(), contextlib.suppress(ProximoError):
            resume(hostile)

    damage()
