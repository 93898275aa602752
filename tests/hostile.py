"""What spoils a run folder (checkpoints for any config.json, files with right hashes), and what a refusal must be."""

from __future__ import annotations

import contextlib
import hashlib
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import proximo
from proximo.errors import CheckpointError, ConfigError, RunFolderError
from proximo.run import checkpoint
from proximo.run.checkpoint import MANIFEST, to_json

Tree = Any  # what JSON can say
Verb = Callable[[Path], object]
MEMORY = 2 * 2**30  # bytes a refusal may take


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
