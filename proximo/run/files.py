"""Files of a run: read without trust, written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from proximo.errors import CheckpointError

JSON_LIMIT = 16 * 2**20  # bytes; no honest JSON of a run comes near


def read_bytes(path: Path, limit: int, last: int | None = None) -> bytes:
    """A regular file's bytes, or its `last` ones: no link, no pipe, no device, no more than `limit`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path} is not a regular file")
            if status.st_size > limit:
                raise CheckpointError(f"{path} has {status.st_size} bytes; at most {limit} are read")
            if last is not None:
                file.seek(max(0, status.st_size - last))
            return file.read(limit)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise CheckpointError(f"{path} is not a regular file") from None
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except MemoryError:
        raise CheckpointError(f"{path} does not fit into memory") from None


def read_json(path: Path) -> Any:
    return parse_json(read_bytes(path, JSON_LIMIT), path)


def parse_json(data: bytes, path: Path) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {str(error)[:200]}") from None


def to_json(tree: Any) -> bytes:
    return (json.dumps(tree, indent=2) + "\n").encode()


def write_durably(path: Path, data: bytes) -> None:
    """Write a file that was not there, and fsync it; no link is followed."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_durably(path: Path, data: bytes) -> None:
    """Write a file aside, fsync it and rename it over `path`: whoever reads finds the old one or the new one, whole."""
    aside = path.with_name(f".writing-{path.name}")
    aside.unlink(missing_ok=True)
    write_durably(aside, data)
    os.replace(aside, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
