"""What environments are made with: options written as name=value."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from proximo.errors import ConfigError


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
