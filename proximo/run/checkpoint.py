"""Checkpoints: safetensors and JSON under a SHA-256 manifest, written aside and renamed. Loading runs no code."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from proximo.errors import CheckpointError
from proximo.run.files import JSON_LIMIT, parse_json, read_bytes, sync_folder, to_json, write_durably

MODEL, STATE, INFO, MANIFEST = "model.safetensors", "state.safetensors", "state.json", "MANIFEST.json"
REPLACED = ".replaced-"  # before the name of a checkpoint that steps back for a new one of the same step
TENSOR_LIMIT = 2**36  # bytes of one safetensors file


@dataclass(frozen=True)
class Checkpoint:
    """One verified checkpoint, in memory."""

    path: Path
    model: dict[str, Tensor]
    state: dict[str, Tensor]
    info: dict[str, Any]

    def number(self, name: str, *kinds: type) -> Any:
        """A counter of state.json: a number of at least 0, of one of these types."""
        value: Any = self.info.get(name)
        if type(value) not in kinds or not 0 <= value < 2**53:
            raise CheckpointError(f"{self.path / INFO}: {name} is {str(value)[:50]!r}, not a number of at least 0")
        return value


def save(checkpoints: Path, step: int, model: Mapping[str, Tensor], state: Mapping[str, Tensor], info: Any) -> Path:
    """Write checkpoints/<step>, whole or not at all; CheckpointError if the disk refuses."""
    files = {
        MODEL: save_tensors(apart(model)),
        STATE: save_tensors(apart(state)),
        INFO: to_json(info),
    }
    for name, data in files.items():
        if len(data) > TENSOR_LIMIT:
            raise CheckpointError(f"{name} would have {len(data):,} bytes, more than is read again ({TENSOR_LIMIT:,})")
    entries = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    versions = {name: version(name) for name in ("proximo", "torch", "gymnasium")}
    manifest = {"format": 1, "files": entries, "versions": versions}
    files[MANIFEST] = to_json({**manifest, "sha256": _digest(manifest)})
    final, aside = checkpoints / f"{step:012d}", checkpoints / f".writing-{step:012d}"
    try:
        if checkpoints.is_symlink():
            raise CheckpointError(f"{checkpoints} is a link: nothing is written through it")
        checkpoints.mkdir(parents=True, exist_ok=True)
        sync_folder(checkpoints.parent)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for name, data in files.items():
            write_durably(aside / name, data)
        sync_folder(aside)
        _put_in_place(aside, final)
        sync_folder(checkpoints)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(f"could not write {final}: {error}; the checkpoints before it are intact") from error
    return final


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies, for safetensors does not take two names of one tensor, as modules have whose weights are tied."""
    return {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}


def _put_in_place(aside: Path, final: Path) -> None:
    """Rename; a folder already there (a broken one, or the same step again) steps back only for one that is whole."""
    old = final.with_name(f"{REPLACED}{final.name}")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
    try:
        os.rename(aside, final)
    except OSError:
        if old.exists():
            os.rename(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint; CheckpointError names the file that is not what the manifest says."""
    entries = _entries(path / MANIFEST)
    data = {name: _verified(path / name, entry) for name, entry in entries.items()}
    model, state = (_tensors(data[name], path / name) for name in (MODEL, STATE))
    info = parse_json(data[INFO], path / INFO)
    if not isinstance(info, dict):
        raise CheckpointError(f"{path / INFO} does not hold an object")
    return Checkpoint(path, model, state, info)


def latest(run: Path, say: Callable[[str], None]) -> Checkpoint:
    """The newest checkpoint that verifies; `say` is told of each newer one that does not."""
    reason = ""
    for path in reversed(all_of(run)):
        try:
            good = load(path)
        except CheckpointError as error:
            reason = str(error)
            say(f"skipping a damaged checkpoint: {reason}")
        else:
            if reason:
                say(f"taking that of step {int(path.name):,} instead")
            return good
    raise CheckpointError(f"{run} has no checkpoint that can be loaded: {reason or 'there is none'}")


def none_yet(run: Path) -> bool:
    """Whether the run was stopped before its first checkpoint, at step 0, was in place; then nothing was logged."""
    folder = run / "checkpoints"
    begun = folder.exists() and any(path.name != f".writing-{0:012d}" for path in folder.iterdir())
    return not begun and not (run / "metrics.jsonl").exists()


def all_of(run: Path) -> list[Path]:
    """Every checkpoint folder of a run, oldest first; one that was replaced counts while its successor is not there."""
    folder = run / "checkpoints"
    if not folder.is_dir() or folder.is_symlink():
        return []
    found = {path.name: path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()}
    steps = {name.removeprefix(REPLACED) for name in found}
    steps = sorted(step for step in steps if len(step) == 12 and step.isascii() and step.isdigit())
    return [found[step] if step in found else found[f"{REPLACED}{step}"] for step in steps]


def _tensors(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return load_tensors(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not safetensors: {error}") from None


def _entries(path: Path) -> dict[str, Any]:
    """What the manifest says of each file; CheckpointError unless every byte of it is as it was written."""
    text = read_bytes(path, JSON_LIMIT)
    manifest = parse_json(text, path)
    entries = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(entries, dict) or set(entries) != {MODEL, STATE, INFO}:
        raise CheckpointError(f"{path} is no manifest of a checkpoint")
    said = manifest.pop("sha256", None)
    if said != _digest(manifest) or text != to_json({**manifest, "sha256": said}):
        raise CheckpointError(f"{path} does not match its own SHA-256: damaged or changed")
    return entries


def _digest(tree: Any) -> str:
    return hashlib.sha256(to_json(tree)).hexdigest()


def _verified(path: Path, entry: Any) -> bytes:
    if not isinstance(entry, dict) or not isinstance(entry.get("bytes"), int):
        raise CheckpointError(f"{path.parent / MANIFEST} says nothing usable of {path.name}")
    data = read_bytes(path, min(JSON_LIMIT if path.suffix == ".json" else TENSOR_LIMIT, max(entry["bytes"], 0)))
    if len(data) != entry["bytes"]:
        raise CheckpointError(f"{path} has {len(data)} bytes, its manifest says {entry['bytes']}: truncated or changed")
    if hashlib.sha256(data).hexdigest() != entry.get("sha256"):
        raise CheckpointError(f"{path} does not match the SHA-256 in its manifest: damaged or changed")
    return data
