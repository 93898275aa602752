"""TensorBoard's event files, as TensorBoard defines them: framed records, each an `Event` protocol buffer.

Written here, for TensorBoard's own writer checks its records byte by byte in Python, which took 0.1 ms an update, and
its package brings a dozen others. TensorBoard itself is needed only to look at them.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from array import array
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import google_crc32c

# Fields of event.proto and summary.proto: (number << 3) | type; type 0 is a varint, 1 a double, 2 bytes, 5 a float.
WALL_TIME, STEP, FILE_VERSION, SUMMARY, SESSION_LOG = b"\x09", b"\x10", b"\x1a", b"\x2a", b"\x3a"
VALUE, TAG, SIMPLE_VALUE = b"\x0a", b"\x0a", b"\x15"
START = b"\x08\x01"  # a SessionLog whose status is START


class EventFile:
    """A new event file in a run's folder. Events that earlier files hold from `step` + 1 on are void."""

    def __init__(self, folder: Path, step: int) -> None:
        now = time.time_ns()
        name = f"events.out.tfevents.{now // 10**9:010d}.{socket.gethostname()}.{os.getpid()}.{now % 10**9}"
        self.file = (folder / name).open("xb", buffering=0)
        self._write(0, FILE_VERSION + sized(b"brain.Event:2"))
        self._write(step + 1, SESSION_LOG + sized(START))

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers by tag, all in one event; as float32, infinite where they are too large for it."""
        packed = array("f", numbers.values())
        if sys.byteorder == "big":
            packed.byteswap()
        content = packed.tobytes()
        values = [beginning(tag) + content[4 * i : 4 * i + 4] for i, tag in enumerate(numbers)]
        self._write(step, SUMMARY + sized(b"".join(values)))

    def _write(self, step: int, what: bytes) -> None:
        event = WALL_TIME + struct.pack("<d", time.time()) + STEP + varint(step) + what
        length = struct.pack("<Q", len(event))
        self.file.write(length + checksum(length) + event + checksum(event))

    def close(self) -> None:
        self.file.close()


@cache
def beginning(tag: str) -> bytes:
    """A summary's value up to its number."""
    named = TAG + sized(tag.encode()) + SIMPLE_VALUE
    return VALUE + varint(len(named) + 4) + named


def sized(content: bytes) -> bytes:
    return varint(len(content)) + content


def varint(number: int) -> bytes:
    """A natural number, seven bits to a byte, the lowest first; the eighth bit says that more follow."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def checksum(content: bytes) -> bytes:
    """The CRC-32C, masked as TFRecord files want it, so that a CRC of what holds CRCs stays a good one."""
    crc = google_crc32c.value(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
