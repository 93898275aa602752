"""What a preset is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Settings for one algorithm on the environments it names."""

    name: str
    source: str
    fits: tuple[str, ...]  # beginnings of environment ids
    settings: dict[str, Any]
    algo: str = "ppo"
