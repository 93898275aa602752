"""Loading a stranger's folder is safe: no code runs, each refusal is one short typed line, time and memory are bounded.

Manifests are forged, so that every hash is right: they show that a folder is whole, not who wrote it.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import hashlib
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import proximo
from proximo.errors import CheckpointError, ConfigError, ProximoError, RunFolderError
from proximo.run import checkpoint, session
from proximo.run.checkpoint import INFO, MANIFEST, MODEL, STATE, to_json
from tests.conftest import Command

pytestmark = pytest.mark.timeout(10)
Tree = Any  # what JSON can say
Verb = Callable[[Path], object]
MEMORY = 2 * 2**30  # bytes a refusal may take
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
        elif isinstance(node, ast.Name | ast.Attribute):
            found.add(ast.unparse(node))
    return {name for name in found if name.split(".")[0] in MODULES or name in CALLS}


def test_the_package_names_nothing_that_runs_code() -> None:
    seen = "import pickle.x; from joblib import load; torch.load(f); eval('1'); f = exec; from numpy import load"
    assert dangers(seen) == {"pickle.x", "joblib", "joblib.load", "torch.load", "eval", "exec", "numpy.load"}
    assert len(SOURCES) > 30
    assert {str(path): bad for path in SOURCES if (bad := dangers(path.read_text()))} == {}


@pytest.fixture
def hostile(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with one checkpoint, at step 1,024 of 2,048: for `plant` and `forge` to spoil."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nothing here is about crashes
    shutil.copytree(trained, tmp_path / "hostile", ignore=lambda folder, names: {*names} - {"config.json"})
    plant(tmp_path / "hostile", trained, config_of(trained))
    return tmp_path / "hostile"


def config_of(run: Path) -> dict[str, Tree]:
    return json.loads((run / "config.json").read_text())


def plant(run: Path, trained: Path, config: Tree, **info: Tree) -> None:
    """Write this config.json, and the trained model in a checkpoint that agrees with it."""
    good = checkpoint.latest(trained, pytest.fail)
    named = {name: config.get(name) for name in ("env", "algo", "spaces")} if isinstance(config, dict) else {}
    (run / "config.json").write_bytes(to_json(config))
    checkpoint.save(run / "checkpoints", 1024, good.model, good.state, {**good.info, "step": 1024, **named, **info})


def file(run: Path, name: str) -> Path:
    return run / name if name == "config.json" else run / "checkpoints" / "000000001024" / name


def forge(run: Path, name: str, data: bytes) -> None:
    """Exchange one file of the checkpoint, and make the manifest agree."""
    file(run, name).write_bytes(data)
    manifest = json.loads(file(run, MANIFEST).read_bytes())
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    forge_manifest(run, manifest)


def forge_manifest(run: Path, manifest: dict[str, Tree]) -> None:
    manifest.pop("sha256", None)
    own = hashlib.sha256(to_json(manifest)).hexdigest()
    file(run, MANIFEST).write_bytes(to_json({**manifest, "sha256": own}))


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def resume(run: Path) -> proximo.Run:
    return proximo.resume(run, quiet=True)


def refused(run: Path, *verbs: Verb) -> str:
    """Assert that each verb (load and resume, unless said) refuses in one short line, and return the last."""
    line = ""
    for verb in verbs or (proximo.load, resume):
        with little_memory(), pytest.raises((CheckpointError, ConfigError, RunFolderError)) as caught:
            verb(run)
        line = str(caught.value)
        assert len(line) < 2000, f"an error of {len(line):,} characters: {line[:80]}…"
        assert line.isprintable(), f"line breaks or control characters in {line!r}"
    return line


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
        number = isinstance(config[path[0]], dict) and path[-1] not in ("device", "backend", "activation", "kind")
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


NOT_OBJECTS = [b"", b"[1]", b"1", b"NaN", b'"x"', b"null", b"{", b"\xff\xfe{}", b'{"a": "\xff"}', b"9" * 10_000]
NOT_OBJECTS += [b"[" * depth + b"]" * depth for depth in (900, 940, 960, 980, 990, 100_000)]
NOT_OBJECTS += [b" " * 17 * 2**20, b"[" + b"1," * 2**22]


@pytest.mark.parametrize("data", NOT_OBJECTS, ids=range(len(NOT_OBJECTS)))
@pytest.mark.parametrize("name", ["config.json", INFO, MANIFEST])
def test_files_that_are_no_json_object(hostile: Path, name: str, data: bytes) -> None:
    if name == INFO:
        forge(hostile, name, data)
    else:
        file(hostile, name).write_bytes(data)
    refused(hostile)


def test_manifests_that_lie(hostile: Path) -> None:
    good = json.loads(file(hostile, MANIFEST).read_bytes())
    entries, model = good["files"], good["files"][MODEL]
    lies = [{**entries, "../../x": model}, {**entries, "/etc/passwd": model}, {"../x": model}, [], {}, None]
    lies += [{MODEL: model, STATE: entries[STATE]}, {**entries, MODEL: None}, {**entries, MODEL: "x"}]
    wrong = [("bytes", -1), ("bytes", 2**70), ("bytes", None), ("bytes", "1"), ("sha256", None), ("sha256", [1])]
    lies += [{**entries, MODEL: {**model, key: value}} for key, value in wrong]
    for lie in lies:
        forge_manifest(hostile, {**good, "files": lie})
        assert "no checkpoint" in refused(hostile)
    forge_manifest(hostile, good)
    proximo.load(hostile)


def header(text: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def lying(**entry: Tree) -> bytes:
    """A tensor file whose only entry is four bytes, described otherwise."""
    honest = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return header(to_json({"actor.0.weight": {**honest, **entry}}), bytes(4))


TENSOR_FILES = [b"", b"x", header(b"{}", length=2**63), header(b"{}", length=10**9), header(b"{"), header(b"[]")]
TENSOR_FILES += [header(b'{"a":' + b"[" * 10_000), header(b"\xff"), header(b" " * 120_000_000)]
TENSOR_FILES += [lying(shape=lie) for lie in ([2**40], [2**40, 2**40], [-1], 1, [2**40, 0])]
TENSOR_FILES += [lying(dtype=lie) for lie in ("F4", "X", None)]
TENSOR_FILES += [lying(data_offsets=lie) for lie in ([0, 2**40], [4, 0], [-4, 0])]


@pytest.mark.parametrize("data", TENSOR_FILES, ids=range(len(TENSOR_FILES)))
@pytest.mark.parametrize("name", [MODEL, STATE])
def test_tensor_files_that_lie(hostile: Path, name: str, data: bytes) -> None:
    forge(hostile, name, data)
    told: list[str] = []
    refused(hostile, lambda run: proximo.load(run, told.append), resume)
    assert name in told[0]


@pytest.mark.parametrize("name", [MODEL, STATE])
def test_tensors_that_do_not_fit(hostile: Path, name: str) -> None:
    good = safetensors.torch.load(file(hostile, name).read_bytes())
    key = min(key for key, value in good.items() if value.shape == (64, 4))
    one = good[key]
    bad = [one.double(), one.half(), one.to(torch.float8_e4m3fn), one.T.contiguous(), one[:0], one[None]]
    cases = [{**good, key: value} for value in (*bad, one * torch.nan, one + torch.inf)]
    cases += [{k: v for k, v in good.items() if k != key}, {**good, "extra": one.clone()}, {}]
    for tensors in cases:
        forge(hostile, name, safetensors.torch.save(tensors))
        assert name in refused(hostile, *((proximo.load, resume) if name == MODEL else (resume,)))


@pytest.mark.parametrize("name", ["step", "update", "seconds"])
@pytest.mark.parametrize(
    "value", [-1, "5", True, None, [], {}, float("nan"), float("inf"), 10**400, 1.5], ids=lambda value: str(value)[:9]
)
def test_counters_that_are_none(hostile: Path, trained: Path, name: str, value: Tree) -> None:
    if (name, value) != ("seconds", 1.5):
        plant(hostile, trained, config_of(trained), **{name: value})
        assert INFO in refused(hostile, resume)
    plant(hostile, trained, config_of(trained), step=10**15)
    assert "complete" in refused(hostile, resume)


def link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_the_real_one(path: Path) -> None:
    path.symlink_to(path.with_name(path.name + ".real"))


@pytest.mark.parametrize("disguise", [os.mkfifo, link_to_zeros, link_to_the_real_one, Path.mkdir])
@pytest.mark.parametrize("name", ["config.json", MODEL, STATE, INFO, MANIFEST])
def test_files_that_are_no_files(hostile: Path, disguise: Verb, name: str) -> None:
    path = file(hostile, name)
    path.rename(path.with_name(path.name + ".real"))
    disguise(path)
    refused(hostile)


LOGS = {"text": b"\xff\n", "deep": b"[" * 100_000, "list": b"[1]\n", "object": b"{}\n", "words": b'{"step": "x"}\n'}


@pytest.mark.parametrize("content", [os.mkfifo, link_to_zeros, *LOGS])
@pytest.mark.parametrize("name", ["metrics.jsonl", "eval.jsonl"])
def test_logs_that_are_none(hostile: Path, name: str, content: str | Verb) -> None:
    """They may be refused or left out."""
    if isinstance(content, str):
        (hostile / name).write_bytes(LOGS[content])
    else:
        content(hostile / name)
    with little_memory(), contextlib.suppress(ProximoError):
        resume(hostile)


@pytest.mark.parametrize("name", ["metrics.jsonl", "eval.jsonl", "metrics.writing", "eval.writing", "curve.png"])
def test_resuming_writes_through_no_link(hostile: Path, tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"")
    (hostile / name).symlink_to(precious)
    with contextlib.suppress(ProximoError):
        resume(hostile)
    assert precious.read_bytes() == b""


def test_names_that_are_no_checkpoints(hostile: Path) -> None:
    path = hostile / "checkpoints" / "000000001024"
    for name in ("1024", "00000000102x", "٠" * 12, "-00000001024", "0000000001024", ".writing-000000001024"):
        path = path.rename(path.with_name(name))
        assert "no checkpoint" in refused(hostile)
    (hostile / "checkpoints" / "000000001024").symlink_to(path.rename(hostile / "elsewhere"))
    assert "no checkpoint" in refused(hostile)


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
