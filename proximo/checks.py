"""Bounds on the numbers of a Config, each violation one line."""

from __future__ import annotations

import math
from typing import Any

from proximo.errors import ConfigError


def check(
    config: Any,
    at_least_one: tuple[str, ...] = (),
    positive: tuple[str, ...] = (),
    not_negative: tuple[str, ...] = (),
    unit: tuple[str, ...] = (),
    below_one: tuple[str, ...] = (),
    decays: tuple[str, ...] = (),
) -> None:
    """Raise ConfigError for the first field that is not a finite number within its bounds; decays are pairs."""
    rules = (
        (at_least_one, lambda x: x >= 1 and x == int(x), "a whole number of at least 1"),
        (positive, lambda x: x > 0, "greater than 0"),
        (not_negative, lambda x: x >= 0, "0 or greater"),
        (unit, lambda x: 0 <= x <= 1, "between 0 and 1"),
        (below_one, lambda x: 0 < x < 1, "greater than 0 and less than 1"),
    )
    for names, holds, wanted in rules:
        for name in names:
            value = getattr(config, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or (isinstance(value, float) and not math.isfinite(value)):
                raise ConfigError(f"{name} is {value!r}: it must be a finite number, {wanted}")
            if not holds(value):
                raise ConfigError(f"{name} is {value}: it must be {wanted}")
    for name in decays:
        pair = getattr(config, name)
        pairs = isinstance(pair, tuple) and len(pair) == 2
        if not pairs or not all(isinstance(x, int | float) and 0 <= x < 1 for x in pair):
            raise ConfigError(f"{name} is {pair!r}: it must be two numbers of at least 0 and less than 1")


def within(name: str, value: float, least: float, most: float) -> None:
    """ConfigError for a number outside [least, most]."""
    if not least <= value <= most:
        raise ConfigError(f"{name} is {value:g}: it must be between {least:g} and {most:g}")
