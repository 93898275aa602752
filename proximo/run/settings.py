"""Settings from plain values, as files and callers have them: each checked against its dataclass's annotation."""

from __future__ import annotations

import math
import numbers
import os
import types
import typing
from typing import Any, Literal

from proximo.errors import ConfigError, unknown


def built(owner: type[Any], settings: Any) -> Any:
    """An instance of a config dataclass from plain values, each checked against its annotation."""
    if not isinstance(settings, dict):
        raise ConfigError(f"config.json: expected an object for {owner.__name__}")
    hints = typing.get_type_hints(owner)
    values = {}
    for name, value in settings.items():
        if name not in hints:
            raise unknown("setting", str(name), hints)
        value = _plain(value, hints[name])
        if not _fits(value, hints[name]):
            raise ConfigError(f"{name} is {value!r}: it must be {_described(hints[name])}")
        values[name] = value
    return owner(**values)


def _plain(value: Any, hint: Any) -> Any:
    """A setting as a dataclass has it: tuples for lists, Python's numbers for NumPy's, floats where they are meant."""
    if isinstance(value, list | tuple):
        kind = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint
        return tuple(_plain(each, kind) for each in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    value = int(value) if isinstance(value, numbers.Integral) else value
    return as_float(value) if takes_float(hint) else value


def takes_float(hint: Any) -> bool:
    return float in (hint, *typing.get_args(hint))


def as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf  # and so refused


def _described(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in args
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = args[:1] * len(value) if args[-1] is ... else args
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if hint is type(None):
        return value is None
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
