"""Proximo in the language benchmark: a run as `proximo language` does it; a step is a row of its metrics.jsonl."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path[:1] = []  # this file must hide no namesake
sys.path.append(str(Path(__file__).resolve().parents[1]))

from language_measure import asked, report
from language_works import COMPLETION, THREADS, worth

from proximo import language
from proximo.sources import generation


def main() -> None:
    work, precision, material, seed, pieces = asked()
    drawing: list[float] = []
    generation.decode = clocked(generation.decode, drawing)
    online = work.group > 1
    settings: dict[str, Any] = dict(group=work.group, reward=worth) if online else {}
    settings |= dict(beta=work.beta) if work.name in ("grpo", "rloo", "dpo") else {}
    settings |= dict(micro_batch=pieces, at_once=pieces) if pieces else {}
    with tempfile.TemporaryDirectory() as folder:
        run = language.train(
            material / "model",
            material / f"{work.name}.jsonl",
            work.name,
            out=Path(folder) / "run",
            quiet=True,
            steps=work.warm + work.steps,
            batch=work.rows,
            max_tokens=COMPLETION,
            lr=work.lr,
            anneal_lr=False,
            seed=seed,
            threads=THREADS,
            device="cpu",
            precision=precision,
            held_out=0.01,
            checkpoint_every=10**6,
            eval_every=0,
            eval_prompts=1,
            **settings,
        )
        rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    passed = [0.0, *(row["seconds"] for row in rows)]
    steps = [after - before for before, after in pairwise(passed)]
    drawn = drawing[: len(steps)] if online else []  # the last is the evaluation's
    report("ours", work, precision, steps, drawn, seed=seed, pieces=pieces)


def clocked(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The same function; each call adds what it took."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        result = function(*args, **kwargs)
        seconds.append(time.perf_counter() - begin)
        return result

    return timed


if __name__ == "__main__":
    main()
