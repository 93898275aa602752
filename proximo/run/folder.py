"""A run's folder: what is in it, and how it comes to be."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from proximo.errors import CheckpointError, ConfigError, RunFolderError
from proximo.run.config import Resolved, from_json
from proximo.run.files import parse_json, read_bytes, read_json, replace_durably, to_json

LOG_LIMIT = 2**30  # bytes
CONFIG, METRICS, EVALS, CURVE = "config.json", "metrics.jsonl", "eval.jsonl", "curve.png"


def new_folder(out: str | Path | None, config: Resolved) -> Path:
    """Create the run's folder and its config.json; RunFolderError if something is already there."""
    try:
        path = generated(config) if out is None else Path(out)
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"{path} is a file, not a folder: choose another --out")
        if path.exists() and any(path.iterdir()):
            advice = f"`proximo resume {path}` continues a run" if (path / CONFIG).exists() else "choose another --out"
            raise RunFolderError(f"{path} is not empty: {advice}")
        path.mkdir(parents=True, exist_ok=True)
        write_config(path, config)
    except OSError as error:
        raise RunFolderError(f"cannot write to {out or 'runs/'}: {error.strerror}") from None
    return path


def generated(config: Resolved) -> Path:
    """A new folder under runs/, named after the run; nobody else's, even if begun in the same second."""
    name = re.sub(r"[^\w.-]+", "-", config.env).strip("-")
    name = f"{name}-{config.algo}-seed{config.run.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    for i in itertools.count(1):
        path = Path("runs", name if i == 1 else f"{name}-{i}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError("unreachable")


def write_config(path: Path, config: Resolved) -> None:
    replace_durably(path / CONFIG, to_json(config.to_json()))


def read_config(path: Path) -> Resolved:
    """The run's configuration; RunFolderError if this is no run."""
    if not path.exists():
        raise RunFolderError(f"{path} does not exist")
    if not (path / CONFIG).exists():
        raise RunFolderError(f"{path} is not a run: it has no {CONFIG}")
    return config_file(path / CONFIG)


def config_file(path: Path) -> Resolved:
    try:
        return from_json(read_json(path))
    except CheckpointError as error:
        raise RunFolderError(str(error)) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file; a missing file has none, and a line that is no row (cut short, say) is left out."""
    if not os.path.lexists(path):
        return []
    rows: list[dict[str, Any]] = []
    for line in read_bytes(path, LOG_LIMIT).splitlines():
        try:
            row = parse_json(line, path)
        except CheckpointError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def rewind(path: Path, step: int) -> None:
    """Drop what was logged after `step`: a resumed run will log it again."""
    for name in (METRICS, EVALS):
        kept = [row for row in read_rows(path / name) if row["step"] <= step]
        replace_durably(path / name, "".join(json.dumps(row) + "\n" for row in kept).encode())
