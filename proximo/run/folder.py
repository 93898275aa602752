"""A run's folder: what is in it, and how it comes to be."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from proximo.errors import CheckpointError, ConfigError, RunFolderError
from proximo.run.checkpoint import read_json, to_json, write_durably
from proximo.run.config import Resolved, from_json

CONFIG, METRICS, EVALS, CURVE = "config.json", "metrics.jsonl", "eval.jsonl", "curve.png"


def new_folder(out: str | Path | None, config: Resolved) -> Path:
    """Create the run's folder and its config.json; RunFolderError if something is already there."""
    if out is None:
        name = re.sub(r"[^\w.-]+", "-", config.env).strip("-")
        out = f"runs/{name}-{config.algo}-seed{config.run.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = Path(out)
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            advice = f"`proximo resume {path}` continues a run" if (path / CONFIG).exists() else "choose another --out"
            raise RunFolderError(f"{path} is not empty: {advice}")
        path.mkdir(parents=True, exist_ok=True)
        write_config(path, config)
    except OSError as error:
        raise RunFolderError(f"cannot write to {path}: {error.strerror}") from None
    return path


def write_config(path: Path, config: Resolved) -> None:
    write_durably(path / CONFIG, to_json(config.to_json()))


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
    """The objects of a .jsonl file; a last line that was cut short is left out, a missing file is empty."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def rewind(path: Path, step: int) -> None:
    """Drop what was logged after `step`: a resumed run will log it again."""
    for name in (METRICS, EVALS):
        kept = [row for row in read_rows(path / name) if row["step"] <= step]
        write_rows(path / name, kept)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replace a .jsonl file, whole or not at all."""
    aside = path.with_suffix(".writing")
    write_durably(aside, "".join(json.dumps(row) + "\n" for row in rows).encode())
    aside.replace(path)
