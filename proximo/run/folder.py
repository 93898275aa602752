"""A run's folder: what is in it, and how it comes to be."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from proximo import ranks
from proximo.errors import CheckpointError, ConfigError, RunFolderError
from proximo.run.config import Resolved, changed, from_json
from proximo.run.files import parse_json, read_bytes, read_json, replace_durably, to_json
from proximo.run.language.plan import LanguagePlan
from proximo.run.language.plan import from_json as language_from_json
from proximo.run.plan import Plan
from proximo.run.samples import page

LOG_LIMIT = 2**30  # bytes
TAIL = 2**14  # bytes; far more than a row of metrics
CONFIG, METRICS, EVALS, DRIFT, CURVE = "config.json", "metrics.jsonl", "eval.jsonl", "drift.jsonl", "curve.png"
ALARMS, SAMPLES, SAMPLES_PAGE = "alarms.jsonl", "samples.jsonl", "samples.md"


def new_folder(out: str | Path | None, config: Resolved | LanguagePlan, seeds: Sequence[int] = ()) -> Path:
    """Create the run's folder and its config.json; RunFolderError if something is already there.

    With `seeds` it is the parent of a folder for each, with a config.json of its own.
    """
    try:
        path = generated(config, seeds) if out is None else Path(out)
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"{path} is a file, not a folder: choose another --out")
        if path.exists() and any(path.iterdir()):
            begun = (path / CONFIG).exists() or seed_folders(path)
            advice = f"`proximo resume {path}` continues a run" if begun else "choose another --out"
            raise RunFolderError(f"{path} is not empty: {advice}")
        path.mkdir(parents=True, exist_ok=True)
        for seed in seeds:  # every folder before any file: a parent that was not finished is seen to be none
            (path / f"seed-{seed}").mkdir()
        for seed in seeds:
            assert isinstance(config, Resolved)
            write_config(path / f"seed-{seed}", replace(config, run=changed(config.run, seed=seed)))
        if not seeds:
            write_config(path, config)
    except OSError as error:
        raise RunFolderError(f"cannot write to {out or 'runs/'}: {error.strerror}") from None
    return path


def shared_folder(out: str | Path | None, config: Resolved | LanguagePlan) -> Path:
    """`new_folder`, made by the first of several processes for all of them."""
    made = str(new_folder(out, config)) if ranks.first() else ""
    return Path(ranks.told(made))


def go_on(path: Path, config: Plan, step: int) -> None:
    """Make a folder that of a run which goes on from `step`, once every process has read from it."""
    ranks.most(step)
    if ranks.first():
        write_config(path, config)
        rewind(path, step)


def generated(config: Resolved | LanguagePlan, seeds: Sequence[int] = ()) -> Path:
    """A new folder under runs/, named after the run; nobody else's, even if begun in the same second."""
    name = re.sub(r"[^\w.-]+", "-", config.title).strip("-")[-80:]
    seed = f"{len(seeds)}seeds" if seeds else f"seed{config.run.seed}"
    name = f"{name}-{config.algo}-{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    for i in itertools.count(1):
        path = Path("runs", name if i == 1 else f"{name}-{i}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError("unreachable")


def write_config(path: Path, config: Plan) -> None:
    replace_durably(path / CONFIG, to_json(config.to_json()))


def read_config(path: Path) -> Resolved:
    """The configuration of a run in an environment; RunFolderError if this is no run, or one of a language model."""
    plan = read_plan(path)
    if not isinstance(plan, Resolved):
        raise RunFolderError(f"{path} is a run of a language model: see `proximo language --help`")
    return plan


def read_plan(path: Path) -> Resolved | LanguagePlan:
    """The run's configuration, whatever it trains; RunFolderError if this is no run."""
    if not os.path.exists(path):  # nor does one of too long a name
        raise RunFolderError(f"{path} does not exist")
    if seeds := seed_folders(path):
        raise RunFolderError(f"{path} holds the runs of {len(seeds)} seeds: name one of them, such as {seeds[0]}")
    if not (path / CONFIG).exists():
        raise RunFolderError(f"{path} is not a run: it has no {CONFIG}")
    return plan_file(path / CONFIG)


def seed_folders(path: Path) -> list[Path]:
    """The runs in a folder of several seeds, in their order; none if it is a run itself, or something else."""
    if not path.is_dir() or (path / CONFIG).exists():
        return []
    found = [(name[1], at) for at in path.iterdir() if (name := re.fullmatch(r"seed-(0|[1-9][0-9]{0,9})", at.name))]
    return [at for number, at in sorted(found, key=lambda one: int(one[0])) if at.is_dir() and not at.is_symlink()]


def config_file(path: Path) -> Resolved:
    """A run in an environment, as a file describes it."""
    plan = plan_file(path)
    if not isinstance(plan, Resolved):
        raise ConfigError(f"{path} is of a language model: `proximo language {plan.algo}` takes no file")
    return plan


def plan_file(path: Path) -> Resolved | LanguagePlan:
    """A run as a file describes it, whatever it trains."""
    try:
        tree = read_json(path)
        language = isinstance(tree, dict) and tree.get("kind") == "language"
        return language_from_json(tree) if language else from_json(tree)
    except CheckpointError as error:
        raise RunFolderError(str(error)) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def config_to_repeat(path: Path, env: str | None, preset: str) -> Resolved:
    """A file's configuration, for `env` if one was named; ConfigError for what it cannot be repeated with."""
    config = config_file(path)
    if preset != "auto":
        raise ConfigError(f"{path} holds every setting already: leave out --preset")
    if ":" in config.env and env is None:
        raise ConfigError(f"{path} names {config.env}, which imports a module: give the environment yourself")
    if config.yours:
        raise ConfigError(f"{path}: its {config.yours[0]} was made in Python; use proximo.train(…)")
    if not config.registered:
        raise ConfigError(f"{path}: {config.env} was made in Python; use proximo.train(…)")
    return config


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file; a missing file has none, and a line that is no row (cut short, say) is left out."""
    if not os.path.lexists(path):
        return []
    return [row for line in read_bytes(path, LOG_LIMIT).splitlines() if (row := row_in(line, path)) is not None]


def last_evaluation(path: Path, step: int) -> int:
    """The step of a run's last evaluation up to this one; 0 where there was none."""
    return max((row["step"] for row in read_rows(path / EVALS) if row["step"] <= step), default=0)


def row_in(line: bytes, path: Path) -> dict[str, Any] | None:
    """A line's row; None if it is none."""
    try:
        row = parse_json(line, path)
    except CheckpointError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def last_row(path: Path) -> dict[str, Any] | None:
    """The last whole row of a .jsonl file that another process is writing, from the file's end alone."""
    try:
        whole, newline, _ = read_bytes(path, LOG_LIMIT, last=TAIL).rpartition(b"\n")
    except CheckpointError:  # it is not there yet, or is no such file
        return None
    return row_in(whole.rpartition(b"\n")[2], path) if newline else None


def rewind(path: Path, step: int) -> None:
    """Drop what was logged after `step`: a resumed run will log it again."""
    for name in (METRICS, EVALS, DRIFT, ALARMS, SAMPLES):
        if not os.path.lexists(path / name):
            continue
        kept = [row for row in read_rows(path / name) if row["step"] <= step]
        replace_durably(path / name, "".join(json.dumps(row) + "\n" for row in kept).encode())
        if name == SAMPLES:
            replace_durably(path / SAMPLES_PAGE, page(kept).encode())
