"""What the scripts of the language benchmark share: their command line, and the JSON object that each prints last."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from language_works import WORKS, Work
from machine import versions


def asked() -> tuple[Work, str, Path, int, int | None]:
    """Work, precision, the folder with model and data, seed, and rows that are evaluated at once where that is told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", choices=WORKS, required=True)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--material", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pieces", type=int, default=None)
    args = parser.parse_args()
    return WORKS[args.work], args.precision, args.material, args.seed, args.pieces


def memory() -> int:
    """Largest resident size of this process so far, MB (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def report(peer: str, work: Work, precision: str, steps: list[float], drawing: list[float], **more: Any) -> None:
    """Print the result: seconds of each step, and what of them was drawing completions, warming up left out."""
    steps, drawing = steps[work.warm :], drawing[work.warm :]
    assert len(steps) == work.steps, (len(steps), work.steps)
    row = {
        "peer": peer,
        "work": work.name,
        "precision": precision,
        "seconds": round(statistics.median(steps), 4),
        "drawing": round(statistics.median(drawing), 4) if drawing else None,
        "memory_mb": memory(),
        "steps": [round(each, 4) for each in steps],
        "versions": versions("proximo", "trl", "transformers", "torch", "accelerate"),
        **more,
    }
    print(json.dumps(row), flush=True)
