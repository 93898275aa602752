"""What does the guard cost where it has nothing to do? Two runs side by side, one of them with a bound and a ledger.

    python benchmarks/guard.py [--seconds 30] [--results benchmarks/results]

Where no update exceeds its bound the two runs are the same, cycle for cycle and bit for bit, which is checked. So a
cycle of one and the same cycle of the other are a pair; which comes first changes from pair to pair, and what else the
machine does meets both. guard.json and guard.md say what the ratios were.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine, versions
from works import CARTPOLE, CHEETAH, Work

from proximo.run import loop, session
from proximo.run.ledger import Ledger
from proximo.run.log import RunLog
from proximo.run.machine import computing
from proximo.run.panel import Silent
from proximo.run.run import Run
from proximo.run.seeding import seed_all

BOUND = 1e6  # nats; nothing exceeds it
WARM = 5  # pairs that are not counted: the first compile
PARTS = 1000  # resamples of the pairs
LIMIT = 0.03  # of a cycle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of pairs, for each work")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    command = f"python benchmarks/guard.py --seconds {args.seconds:g}"
    rows = [measured(work, args.seconds) for work in (CARTPOLE, CHEETAH)]
    told = {"command": command, "machine": machine(), "versions": versions(), "works": rows}
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "guard.json").write_text(json.dumps(told, indent=1) + "\n")
    (args.results / "guard.md").write_text(table(told))
    print((args.results / "guard.md").read_text())


def measured(work: Work, seconds: float) -> dict[str, Any]:
    """One work: seconds of a cycle without and with the guard, pair by pair."""
    load, pairs, alone = os.getloadavg()[0], list[tuple[float, float]](), list[float]()
    with ExitStack() as stack:
        plain, guarded = (stack.enter_context(runner(work, bound)) for bound in (None, BOUND))
        settle = Ledger.settle
        Ledger.settle = clocked(settle, alone)  # type: ignore[method-assign]
        stack.callback(setattr, Ledger, "settle", settle)
        begin, count = time.perf_counter(), 0
        while time.perf_counter() < begin + seconds or count < 2 * WARM:
            first, second = (plain, guarded) if count % 2 else (guarded, plain)
            taken = {id(each): one_cycle(*each) for each in (first, second)}
            pairs.append((taken[id(plain)], taken[id(guarded)]))
            count += 1
            if count == WARM:
                begin = time.perf_counter()
        same = all(map(torch.equal, plain[0].policy.parameters(), guarded[0].policy.parameters()))
        assert same, "the guard changed an update that it should have left alone"
    without, having = np.array(pairs[WARM:]).T
    cost = having / without - 1
    low, high = np.quantile(resampled(cost), [0.025, 0.975])
    return {
        "work": work.name,
        "env": work.env,
        "lanes": work.envs,
        "horizon": work.horizon,
        "pairs": len(cost),
        "cycle_ms": 1e3 * float(np.median(without)),
        "cost": float(np.median(cost)),
        "cost_low": float(low),
        "cost_high": float(high),
        "cost_of_sums": float(having.sum() / without.sum() - 1),
        "settle_ms": 1e3 * float(np.median(alone[WARM:])),
        "load_before": round(load, 2),
    }


@contextmanager
def runner(work: Work, bound: float | None) -> Iterator[tuple[Run, loop.Guard, RunLog]]:
    """A compiled run of a work, ready for its first cycle."""
    preset = "continuous" if work.normalize else "discrete"
    settings = dict(envs=work.envs, horizon=work.horizon, epochs=work.epochs, minibatches=work.minibatches, lr=work.lr)
    more = dict(compile="on", steps=10**9, checkpoint_every=10**9, hidden=work.hidden, max_kl=bound, anneal_lr=False)
    more |= dict(normalize_observation=work.normalize, normalize_reward=work.normalize)
    config, _ = session.preset_config(work.env, "ppo", preset, settings | more)
    config, lanes, _ = session.fitted(work.env, config)
    with tempfile.TemporaryDirectory() as folder, computing(config):
        seed_all(config.run.seed)
        run = session.build(work.env, config, lanes)
        run.folder = Path(folder)
        log = RunLog(run.folder, 0)
        try:
            loop.start_lanes(run)
            yield run, loop.Guard(run), log
        finally:
            run.source.close()
            log.close()


def one_cycle(run: Run, guard: loop.Guard, log: RunLog) -> float:
    begin = time.perf_counter()
    loop.cycle(run, guard, log, Silent())
    return time.perf_counter() - begin


def clocked(function: Any, seconds: list[float]) -> Any:
    """The same function; each call adds what it took."""

    def timed(*args: Any) -> Any:
        begin = time.perf_counter()
        result = function(*args)
        seconds.append(time.perf_counter() - begin)
        return result

    return timed


def resampled(values: np.ndarray) -> np.ndarray:
    """Medians of the bootstrap (Efron 1979)."""
    drawn = np.random.default_rng(0).integers(len(values), size=(PARTS, len(values)))
    return np.median(values[drawn], axis=1)


def table(told: dict[str, Any]) -> str:
    """guard.md."""
    named = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
    lines = [
        "# The guard where nothing is violated",
        "",
        "A compiled run with a bound and a ledger (`--max-kl`) against the same run without, cycle by cycle, in pairs",
        "that take turns. cost: what the guard adds to a cycle, the median over pairs [95 % bootstrap interval]; of",
        "sums: all time with against all without. ledger: the guard's own time, measured around it.",
        f"The limit is {LIMIT:.0%}.",
        "",
        f"    {told['command']}",
        "",
        f"Machine: {told['machine']}. {named}.",
        "",
        "| task | lanes × steps | cycle ms | ledger ms | cost | of sums | pairs | load before |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in told["works"]:
        cost = f"{row['cost']:.2%} [{row['cost_low']:.2%}, {row['cost_high']:.2%}]"
        cells = [row["env"], f"{row['lanes']} × {row['horizon']}", f"{row['cycle_ms']:.2f}", f"{row['settle_ms']:.3f}"]
        cells += [cost, f"{row['cost_of_sums']:.2%}", str(row["pairs"]), f"{row['load_before']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
