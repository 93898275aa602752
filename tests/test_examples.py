"""The examples run as they stand, and learn: where it is cold they heat, where it is warm they do not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"custom_env.py", "tensor_env.py", "own_network.py"}


@pytest.mark.parametrize("name", [pytest.param("custom_env.py", marks=pytest.mark.slow), "tensor_env.py"])
def test_it_learns_to_heat(name: str, tmp_path: Path) -> None:
    argv = [sys.executable, EXAMPLES / name]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, check=True)
    cold, warm = map(float, re.findall(r"\[ *(-?[\d.]+)\]", done.stdout.splitlines()[-1]))
    assert cold > 0.5, done.stdout
    assert warm < -0.5, done.stdout
    assert len(list((tmp_path / "runs").iterdir())) == 1
