"""What environments are made with: options written as name=value."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from proximo.errors import ConfigError

PLAIN = re.compile(r"[\w-]+")
POINTS = r"path|dir|directory|folder|root|file|filename|arg|cmd|command|exe|bin|binary|module|entry|entry_point|xml|url"
POINTING = re.compile(rf"(^|_)({POINTS})s?(_|$)|(path|file|dir)s?$", re.IGNORECASE)


def options_from(said: Sequence[str]) -> dict[str, Any]:
    """{name: value} of "name=value"; a value is JSON (a number, true, false, null, a list), or else a word."""
    found = dict[str, Any]()
    for each in said:
        name, equals, value = each.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"the environment option {each!r} must read name=value")
        if name in found:
            raise ConfigError(f"the environment option {name} is given twice")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def said(options: Mapping[str, Any] | Sequence[str]) -> tuple[str, ...]:
    """Options as they are written, from a dict or as they are; ConfigError for values that JSON cannot hold."""
    if isinstance(options, str) or not isinstance(options, Mapping):
        return (options,) if isinstance(options, str) else tuple(options)
    try:
        return tuple(f"{name}={json.dumps(value)}" for name, value in options.items())
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the environment's options must be JSON, or pass a maker instead: {error}") from None


def merged(under: Sequence[str], over: Sequence[str]) -> tuple[str, ...]:
    """Options over others, by name."""
    return said(options_from(under) | options_from(over))


def must_be_harmless(options: Mapping[str, Any], where: str) -> None:
    """ConfigError for options out of a file that could name a file or a program: some environments run one.

    Numbers, switches and nothing at all are harmless, and so are plain words for options that point to nothing.
    """

    def harmless(value: Any) -> bool:
        if isinstance(value, list):
            return all(map(harmless, value))
        return value is None or isinstance(value, bool | int | float) or bool(PLAIN.fullmatch(str(value)))

    for name, value in options.items():
        if POINTING.search(name) or isinstance(value, dict) or not harmless(value):
            raise ConfigError(
                f"{where}: the environment's option {name}={value} may name a file or a program, and is not taken from "
                "a file: remove it there, and pass a maker of your own from Python"
            )
