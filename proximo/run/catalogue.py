"""What is at hand: algorithms, presets, backends and environments."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from rich.console import Console
from rich.table import Table
from rich.text import Text

from proximo.algorithms import ALGORITHMS
from proximo.algorithms.language import LANGUAGE
from proximo.errors import install
from proximo.presets import PRESETS
from proximo.presets.preset import Preset
from proximo.sources.backends import BACKENDS
from proximo.sources.envpool import envpool_ids

MOST = 8  # names


def papers(algorithms: Mapping[str, type[Any]]) -> list[tuple[str, str]]:
    """Each algorithm's name, and the first line of its file."""
    return [(name, (sys.modules[cls.__module__].__doc__ or "").split("\n")[0]) for name, cls in algorithms.items()]


def served(preset: Preset) -> str:
    """The algorithms that a preset was made for, where they are not PPO and its relatives."""
    return "" if "ppo" in preset.algos else f" (for {', '.join(preset.algos)})"


def tasks(preset: Preset) -> str:
    """The tasks for which `--preset auto` may take a preset, or how many."""
    names = [name for name in preset.fits if name]
    few = names if len(names) <= MOST else [*names[:2], f"… {len(names)} of them"]
    taken = preset.fits or preset.name in ("discrete", "continuous")  # where no other fits
    return ", ".join(few) or ("any" if taken else "where it is asked for")


def show(console: Console) -> None:
    """Print all of it."""
    for title, rows in (
        ("algorithms", papers(ALGORITHMS)),
        ("algorithms of `proximo language`", papers(LANGUAGE)),
        (
            "presets",
            [(p.name, f"{tasks(p)} — {p.source}{served(p)}") for p in PRESETS.values()],
        ),
        ("backends", list(BACKENDS.items())),
    ):
        table = Table.grid(padding=(0, 2))
        for row in rows:
            table.add_row("", *map(Text, row))
        console.print(f"[bold]{title}[/]", table)
    pooled = set(envpool_ids())
    for title, names in (("", set(gym.registry)), (" that EnvPool has too", set(gym.registry) & pooled)):
        console.print(f"[bold]environments{title} ({len(names)})[/]")
        console.print(f"  {' '.join(sorted(names))}", markup=False)
    if not pooled:
        console.print(f"  EnvPool is not installed: {install('envpool')}", markup=False)
