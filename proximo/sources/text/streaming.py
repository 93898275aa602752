"""Data sets larger than memory: rows are read, and examples made of them, when they are drawn."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from proximo.errors import ConfigError
from proximo.sources.text.examples import Example
from proximo.sources.text.formats import Text, count, in_turns, texts
from proximo.sources.text.reading import (
    PARQUET,
    Row,
    Table,
    by_library,
    located,
    must_have_rows,
    read,
    readable,
    row_of,
)

T = TypeVar("T")
TOGETHER = 1_000  # rows that are read at once where all are looked at


class Lazy(Sequence[T]):
    """A sequence whose items are made when they are asked for, and not kept."""

    def __init__(self, size: int, made: Callable[[Sequence[int]], list[T]]) -> None:
        """`made` gives the items of some places."""
        self.places, self.made = range(size), made

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        return self.made(self.places[index]) if isinstance(index, slice) else self.made([self.places[index]])[0]

    def __iter__(self) -> Iterator[T]:
        for i in range(0, len(self), TOGETHER):
            yield from self[i : i + TOGETHER]


def at(items: Sequence[T], places: np.ndarray) -> list[T]:
    """The items of these places; lazy ones are made together."""
    return items.made(places.tolist()) if isinstance(items, Lazy) else [items[i] for i in places]


def opened(data: Any, split: str = "train", config: str | None = None) -> tuple[Table, str]:
    """The rows that `read` gives, to be read one by one; and a digest of all of them.

    Of a file of JSON the places of its lines are kept, 16 bytes each; parquet and what `datasets` loads is mapped from
    the disk, where `datasets` has its cache. All of it is read once, for the digest.

    Raises what `read` does, but of lines that are malformed when they are drawn.
    """
    name, found = located(data, split, config)
    if isinstance(found, Path) and found.suffix.lower() == PARQUET:
        found = by_library(name, split, config)
    if isinstance(found, Path):
        return _lines(name, found)
    if hasattr(found, "column_names"):
        return _mapped(name, found)
    table, hashed = read(found), hashlib.sha256()
    for row in table.rows:
        hashed.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return table, hashed.hexdigest()


def _lines(name: str, path: Path) -> tuple[Table, str]:
    begins, numbers, hashed, begin = array("q"), array("q"), hashlib.sha256(), 0
    with readable(name), path.open("rb") as file:
        written = path.stat().st_mtime_ns
        for number, line in enumerate(file, 1):
            hashed.update(line)
            if not line.isspace():
                begins.append(begin)
                numbers.append(number)
            begin += len(line)
    must_have_rows(name, begins)

    def rows(places: Sequence[int]) -> list[Row]:
        found = list[Row]()
        with readable(name), path.open("rb") as file:
            if path.stat().st_mtime_ns != written:
                raise ConfigError(f"{name} was written to since this run began to read it")
            for i in places:
                file.seek(begins[i])
                found.append(row_of(file.readline(), path, numbers[i]))
        return found

    size = len(begins)
    names = Lazy(size, lambda places: [f"{name}, line {numbers[i]}" for i in places])
    return Table(Lazy(size, rows), names), hashed.hexdigest()


def _mapped(name: str, found: Any) -> tuple[Table, str]:
    """The rows of a `datasets.Dataset`, as its `to_list` has them."""
    must_have_rows(name, found)
    found, hashed = found.with_format("arrow"), hashlib.sha256()
    for part in found.iter(TOGETHER):
        hashed.update(str(part.schema.remove_metadata()).encode())
        for batch in part.combine_chunks().to_batches():
            hashed.update(batch.serialize())
    names = Lazy(len(found), lambda places: [f"{name}, row {i + 1}" for i in places])
    return Table(Lazy(len(found), lambda places: found[places].to_pylist()), names), hashed.hexdigest()


def owners(table: Table, kind: str, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Which row each text is of, in order, for several parts of a table.

    It is one text of a row; but where the first row is messages, the turns of all rows are counted.
    """
    if not in_turns(table.rows[0], kind):
        return list(rows)
    turns = np.fromiter((count(row, kind) for row in table.rows), np.int64, len(table.rows))
    return [np.repeat(some, turns[some]) for some in rows]


def streamed(
    table: Table, owner: np.ndarray, kind: str, tokenizer: Any, made: Callable[[list[Text]], list[Example]]
) -> Lazy[Example]:
    """The examples that `made` makes of a table's texts, one of each; `owner`, ascending, says whose each text is.

    What texts and `made` raise is raised when an example is drawn, with its place.
    """

    def text(i: int) -> Text:
        row = int(owner[i])
        found = texts(Table(table.rows[row : row + 1], table.places[row : row + 1]), kind, tokenizer)
        first, end = np.searchsorted(owner, [row, row + 1]).tolist()
        if len(found) != end - first:
            words = "rows to stream are all messages, or the first is"
            raise ConfigError(f"{table.places[row]} has {len(found)} turns to learn, unlike the first row: {words}")
        return found[i - first]

    def examples(places: Sequence[int]) -> list[Example]:
        found = [text(i) for i in places]
        try:
            return made(found)
        except ConfigError:
            for each in found:
                _named(each, made)
            raise

    return Lazy(len(owner), examples)


def _named(text: Text, made: Callable[[list[Text]], list[Example]]) -> None:
    """ConfigError with a text's place, where nothing can be made of it."""
    try:
        made([text])
    except ConfigError as error:
        raise ConfigError(f"{text.place}: {str(error).removeprefix(f'{text.place}: ')}") from None
