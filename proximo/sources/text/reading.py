"""Rows of a data set: JSONL, parquet, what the library `datasets` reads, or dicts."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from proximo.errors import ConfigError, MissingExtra, install

Row = Mapping[str, Any]
PARQUET = ".parquet"
FILES = (".jsonl", ".ndjson", ".json", PARQUET)
LONGEST = 4_000  # characters of a place
MOST_FILES = 10_000  # in a folder and all within it
SAVED = ("state.json", "dataset_dict.json")  # one of them lies in a folder that `Dataset.save_to_disk` wrote


class Table(NamedTuple):
    """Rows of named columns."""

    rows: Sequence[Row]
    places: Sequence[str]  # where each row stands, for errors


def read(data: Any, split: str = "train", config: str | None = None) -> Table:
    """The rows of a data set.

    `data` is the path of a file (.jsonl, .json with one object a line, .parquet), a folder or hub id that `datasets`
    loads (`config` names one of its configurations), a `datasets.Dataset`, a dict of splits, or an iterable of dicts.
    `split` counts where there are splits.

    Raises ConfigError for what is missing, malformed (with file and line) or empty; MissingExtra where the library that
    reads it is not installed.
    """
    name, found = located(data, split, config)
    lines = None
    if isinstance(found, Path):
        with readable(name):
            rows, lines = (_parquet(found), None) if found.suffix.lower() == PARQUET else _lines(found)
    else:
        rows = found.to_list() if hasattr(found, "column_names") else list(found)
    must_have_rows(name, rows)
    places = [f"{name}, line {i}" for i in lines] if lines else [f"{name}, row {i + 1}" for i in range(len(rows))]
    for row, place in zip(rows, places, strict=True):
        if not isinstance(row, Mapping):
            raise ConfigError(f"{place} is a {type(row).__name__}, not a dict of named columns")
    return Table(rows, places)


def must_have_rows(name: str, rows: Sequence[Any]) -> None:
    if not len(rows):
        raise ConfigError(f"{name} has no rows")


def located(data: Any, split: str, config: str | None) -> tuple[str, Any]:
    """A data set's name in errors, and where its rows are: a file's Path, a `datasets.Dataset`, or an iterable.

    Raises what `read` does for what is none of them.
    """
    if isinstance(data, str | os.PathLike):
        name = os.fspath(data)
        return name, _stored(name, split, config)
    if isinstance(data, Mapping):
        if split not in data:
            raise ConfigError(f"the data set has no split {split!r}; it has {', '.join(map(str, data))}")
        return located(data[split], split, config)
    if hasattr(data, "column_names"):
        if not hasattr(data, "__len__"):
            raise ConfigError("a streamed data set has no length: give some of its rows, list(data.take(10_000))")
        return "the data set", data
    if isinstance(data, Iterable):
        return "the data", data
    raise ConfigError(f"data is a {type(data).__name__}: give a path, a data set of `datasets` or a list of dicts")


def _stored(place: str, split: str, config: str | None) -> Any:
    path = Path(place)
    if len(place) > LONGEST:
        raise ConfigError(f"there is no data set {place[:40]}…: no name has {len(place):,} characters")
    if path.suffix.lower() not in FILES:
        return by_library(place, split, config)
    if not os.path.isfile(path):
        raise ConfigError(f"there is no file {place}")
    return path


@contextmanager
def readable(place: str) -> Iterator[None]:
    """A block that raises ConfigError where the file it reads cannot be read."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{place} cannot be read: {error.strerror or error}") from None


def _lines(path: Path) -> tuple[list[Row], list[int]]:
    """One JSON object a line, and the lines' numbers; empty ones are passed over."""
    rows, lines = list[Row](), list[int]()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.isspace():
                rows.append(row_of(line, path, number))
                lines.append(number)
    return rows, lines


def row_of(line: bytes, path: Path, number: int) -> Row:
    """What a line of JSON says; ConfigError that names it where it is no object."""
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}, line {number} is no JSON: {error}") from None
    if not isinstance(row, dict):
        words = 'expected one object a line, such as {"prompt": "…", "completion": "…"}'
        raise ConfigError(f"{path}, line {number} is a {type(row).__name__}: {words}")
    return row


def _parquet(path: Path) -> list[Row]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise _missing(str(path)) from None
    try:
        return parquet.read_table(path).to_pylist()
    except ValueError as error:  # pyarrow's own errors derive from it
        raise ConfigError(f"{path} is no parquet file: {_first_line(error)}") from None


def by_library(place: str, split: str, config: str | None) -> Any:
    """What `datasets` finds: a folder that it saved, a folder of data files, a data set of the hub, a parquet file."""
    try:
        import datasets
        import pyarrow.parquet as parquet
    except ImportError:
        raise _missing(place) from None
    try:
        if Path(place).suffix.lower() == PARQUET:
            parquet.read_schema(place)  # `datasets` would log what it is not
            return datasets.Dataset.from_parquet(place)
        must_be_small(place)
        if any((Path(place) / name).is_file() for name in SAVED):
            return located(datasets.load_from_disk(place), split, None)[1]
        return datasets.load_dataset(place, config, split=split)
    except ConfigError:
        raise
    except Exception as error:  # of any kind: of the hub, of the network, of a file's format
        words = f"{type(error).__name__}: {_first_line(error)}"
        raise ConfigError(f"the data set {place!r} (split {split!r}) cannot be loaded: {words}") from None


def must_be_small(place: str) -> None:
    """ConfigError for a folder of so many files that it cannot be meant: `datasets` would look at each."""
    files = (name for _, _, names in os.walk(place) for name in names)
    if len(list(itertools.islice(files, MOST_FILES + 1))) > MOST_FILES:
        raise ConfigError(f"{place} holds more than {MOST_FILES:,} files: name the data set's own folder")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no reason given")


def _missing(what: str) -> MissingExtra:
    return MissingExtra(f"{what} needs packages that are not installed: {install('language')}")
