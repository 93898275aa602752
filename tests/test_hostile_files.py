"""No file of a stranger's folder does harm: one short typed line refuses it, in bounded time and memory.

Whatever it holds or is: manifests, tensor files, logs, pipes, links, names. Manifests are forged, so that every hash is
right: they show that a folder is whole, not who wrote it.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

import proximo
from proximo.errors import ProximoError
from proximo.run.checkpoint import INFO, MANIFEST, MODEL, STATE, to_json
from tests.hostile import Tree, Verb, config_of, file, forge, forge_manifest, little_memory, plant, refused, resume

pytestmark = pytest.mark.timeout(10)
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
    (hostile / "eval.jsonl").write_text(json.dumps({"step": 10**15}) + "\n")  # else it would be evaluated
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
