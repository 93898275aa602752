"""The tables of benchmarks/mujoco.py."""

from __future__ import annotations

from pathlib import Path


def write_table(results: Path) -> None:
    """mujoco.md beside the results."""
