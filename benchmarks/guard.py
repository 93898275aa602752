"""What does the guard cost where it has nothing to do? Two runs side by side, one of them with a bound and a ledger.

    python benchmarks/guard.py [--seconds 4] [--results benchmarks/results]

Where no update exceeds its bound the two runs are the same, cycle for cycle and bit for bit, which is checked. So a
cycle of one and the same cycle of the other are a pair; which comes first changes from pair to pair, and what else the
machine does meets both. What two such runs take depends on where their memory came to lie, by a per cent or so of short
cycles, so they are made anew several times; which is made first changes too. Each work is measured twice: far from the
bound, and near it, where the KL is measured in float64 too; a third run, a cycle ahead, tells what bound is near.
guard.json and guard.md say what the ratios were. The exit status is 1 where the guard costs more than 3 % far from the
bound, by the whole of the cost's interval.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import commit, machine, versions
from turns import Runner, runner
from works import CARTPOLE, CHEETAH, Work

from proximo.drift import near
from proximo.run.config import changed
from proximo.run.ledger import Ledger

FAR = 1e6  # nats; nothing comes near it
ABOVE = 0.075  # of an update's KL, by which a bound lies above it that is near: within drift.NEAR, and not exceeded
COMPILE = "on"
WARM = 5  # pairs that are not counted: the first compile
MAKINGS = 8  # of the runs of a work
PARTS = 1000  # resamples of the makings and their pairs
LIMIT = 0.03  # of a cycle


@dataclass(frozen=True)
class Case:
    """What is trained, a bound held over it."""

    env: str
    algo: str
    preset: str = "auto"
    settings: dict[str, Any] = field(default_factory=dict)


def of_work(work: Work) -> Case:
    """PPO on one of the works of benchmarks/speed.py."""
    settings = dict(envs=work.envs, horizon=work.horizon, epochs=work.epochs, minibatches=work.minibatches, lr=work.lr)
    settings |= dict(hidden=work.hidden, normalize_observation=work.normalize, normalize_reward=work.normalize)
    return Case(work.env, "ppo", "continuous" if work.normalize else "discrete", settings | dict(anneal_lr=False))


CASES = (
    of_work(CARTPOLE), of_work(CHEETAH), Case(CHEETAH.env, "trpo"), Case(CARTPOLE.env, "reinforce"),
    Case(CHEETAH.env, "a2c"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of pairs, for each making of a work and a bound")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    command = f"python benchmarks/guard.py --seconds {args.seconds:g}"
    rows = [measured(case, args.seconds, near_it) for case in CASES for near_it in (False, True)]
    told = {"command": command, "commit": commit(), "machine": machine(), "versions": versions(), "works": rows}
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "guard.json").write_text(json.dumps(told, indent=1) + "\n")
    (args.results / "guard.md").write_text(table(told))
    print((args.results / "guard.md").read_text())
    sys.exit(too_dear(rows))


def too_dear(rows: list[dict[str, Any]]) -> str | None:
    """Which works cost more than is asked, far from the bound; None if none does."""
    dear = [row for row in rows if row["bound"] == "far" and row["cost_low"] > LIMIT]
    named = ", ".join(f"{row['algo']} on {row['env']} {row['cost']:.2%}" for row in dear)
    return f"far from its bound the guard costs more than {LIMIT:.0%}: {named}" if dear else None


def measured(case: Case, seconds: float, near_it: bool) -> dict[str, Any]:
    """One case: seconds of a cycle without and with the guard, pair by pair, far from the bound or near it."""
    load = os.getloadavg()[0]
    made = [made_once(case, seconds, near_it, bool(i % 2)) for i in range(MAKINGS)]
    kls = [kl for each in made for kl in each.kls]
    return {
        "env": case.env,
        "algo": case.algo,
        **made[0].size,
        "bound": "near" if near_it else "far",
        "near": sum(each.near for each in made) / sum(each.cycles for each in made),
        "fixed": fixed(np.array(kls)) if near_it else None,
        **costs([np.array(each.pairs) for each in made]),
        "settle_ms": 1e3 * float(np.median([second for each in made for second in each.alone])),
        "load_before": round(load, 2),
    }


@dataclass
class Made:
    """What the runs of one making took: pairs of seconds, and the ledger's own; what it saw."""

    size: dict[str, int]
    pairs: list[tuple[float, float]] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    kls: list[float] = field(default_factory=list)
    near: int = 0  # updates whose KL was measured in float64
    cycles: int = 0


def made_once(case: Case, seconds: float, near_it: bool, guarded_first: bool) -> Made:
    """Make the runs of a case, and let them take turns for some seconds."""
    alone, exact, pairs, kls = list[float](), list[float](), list[tuple[float, float]](), list[float]()
    with ExitStack() as stack:
        bounds = (FAR, None) if guarded_first else (None, FAR)
        made = {bound: stack.enter_context(runner(*asked_of(case, bound))) for bound in bounds}
        plain, guarded = made[None], made[FAR]
        scout = stack.enter_context(runner(*asked_of(case, FAR))) if near_it else None
        ledger = ledger_of(guarded)
        ledger.settle = clocked(ledger.settle, alone)  # type: ignore[method-assign]
        ledger.exact = clocked(ledger.exact, exact)
        begin, count = time.perf_counter(), 0
        while time.perf_counter() < begin + seconds or count < 2 * WARM:
            if scout is not None:
                kls.append(scouted(scout))
                ledger.config = changed(guarded.run.config.run, max_kl=(1 + ABOVE) * kls[-1])
            first, second = (plain, guarded) if count % 2 else (guarded, plain)
            taken = {id(each): each.cycle() for each in (first, second)}
            pairs.append((taken[id(plain)], taken[id(guarded)]))
            count += 1
            if count == WARM:
                begin = time.perf_counter()
        same = all(map(torch.equal, plain.run.policy.parameters(), guarded.run.policy.parameters()))
        assert same, "the guard changed an update that it should have left alone"
        size = {"lanes": plain.run.config.run.envs, "horizon": plain.run.config.algorithm.horizon}
    return Made(size, pairs[WARM:], alone[WARM:], kls, len(exact), count)


def costs(makings: list[np.ndarray]) -> dict[str, Any]:
    """What the guard adds, from the seconds [pairs, 2] of cycles without it and with it in each making.

    A making's cost is the median over its pairs, and the cost the mean of those; its interval is of makings drawn
    anew, and in each its pairs.
    """
    each = [having / without - 1 for without, having in (pairs.T for pairs in makings)]
    low, high = np.quantile(resampled(each), [0.025, 0.975])
    without, having = np.concatenate(makings).T
    return {
        "pairs": len(without),
        "makings": [float(np.median(cost)) for cost in each],
        "cycle_ms": 1e3 * float(np.median(without)),
        "cost": float(np.mean([np.median(cost) for cost in each])),
        "cost_low": float(low),
        "cost_high": float(high),
        "cost_of_sums": float(having.sum() / without.sum() - 1),
    }


def fixed(kls: np.ndarray) -> dict[str, float]:
    """Shares of updates that come near one bound for all of them, and that exceed it: that much above their median."""
    bound = float((1 + ABOVE) * np.median(kls))
    return {
        "bound": bound,
        "near": float(np.mean([near(kl, bound) for kl in kls])),
        "over": float((kls > bound).mean()),
    }


def asked_of(case: Case, bound: float | None) -> tuple[str, str, str, dict[str, Any]]:
    """What `turns.runner` takes to make a run of a case."""
    more = dict(compile=COMPILE, steps=10**9, checkpoint_every=10**9, max_kl=bound)
    return case.env, case.algo, case.preset, case.settings | more


def scouted(scout: Runner) -> float:
    """The KL of the update that a cycle makes, nats."""
    ledger = ledger_of(scout)
    before = ledger.kl_sum.item()
    scout.cycle()
    return ledger.kl_sum.item() - before


def ledger_of(runner: Runner) -> Ledger:
    assert isinstance(runner.run.ledger, Ledger)
    return runner.run.ledger


def clocked(function: Any, seconds: list[float]) -> Any:
    """The same function; each call adds what it took."""

    def timed(*args: Any) -> Any:
        begin = time.perf_counter()
        result = function(*args)
        seconds.append(time.perf_counter() - begin)
        return result

    return timed


def resampled(groups: list[np.ndarray]) -> np.ndarray:
    """Means of medians of the bootstrap in two stages: groups, then the values of each (Davison and Hinkley 1997)."""
    draw = np.random.default_rng(0)

    def one() -> float:
        chosen = draw.integers(len(groups), size=len(groups))
        return float(np.mean([np.median(draw.choice(groups[i], len(groups[i]))) for i in chosen]))

    return np.array([one() for _ in range(PARTS)])


def verdict(row: dict[str, Any]) -> str:
    """Whether a cost is within the limit, as far as its interval tells."""
    if row["cost_low"] > LIMIT:
        return "**above**"
    return "within" if row["cost_high"] <= LIMIT else "not told apart"


def table(told: dict[str, Any]) -> str:
    """guard.md."""
    named = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
    limit, above = f"{100 * LIMIT:g} %", f"{100 * ABOVE:g} %"
    load = ", ".join(f"{row['load_before']:.1f}" for row in told["works"])
    lines = [
        "# The guard where nothing is violated",
        "",
        "A compiled run with a bound and a ledger (`--max-kl`) against the same run without, cycle by cycle, in pairs",
        f"that take turns; {MAKINGS} such pairs of runs, made one after the other. cost: what the guard adds to a",
        "cycle, the median over a making's pairs, the mean of the makings [95 % bootstrap interval of makings and",
        "pairs]; of sums: all time with against all without. ledger: the guard's own time, measured around it.",
        "",
        f"Where nothing is violated {limit} of a cycle is the most that is asked, and nothing is here: `far` is a",
        f"bound of {FAR:g} nats; `near` is one {above} above what each update asks, told by a third run a cycle ahead,",
        "so that the KL of every update is measured in float64 too: no update that is not cut costs more. near: the",
        "share of updates whose KL was measured so. Seed 0: a pilot.",
        "",
        f"    {told['command']}",
        "",
        f"Commit {told['commit']}. Machine: {told['machine']}; its load before each row {load}. {named}.",
        "",
        "| task | algorithm | lanes × steps | bound | near | cycle ms | ledger ms | cost | limit | of sums | pairs |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in told["works"]:
        cells = [row["env"], row["algo"], f"{row['lanes']} × {row['horizon']}", row["bound"], f"{row['near']:.0%}"]
        cells += [f"{row['cycle_ms']:.2f}", f"{row['settle_ms']:.3f}"]
        cells += [f"{row['cost']:.2%} [{row['cost_low']:.2%}, {row['cost_high']:.2%}]", verdict(row)]
        cells += [f"{row['cost_of_sums']:.2%}", str(row["pairs"])]
        lines.append(f"| {' | '.join(cells)} |")
    for row in told["works"]:
        if (one := row["fixed"]) is not None:
            lines += [
                "",
                f"{row['algo']} on {row['env']}: one bound for all updates, {above} above their median KL,",
            ]
            lines += [
                f"{one['bound']:.2g} nats, would be near in {one['near']:.0%} of them, and cut {one['over']:.0%}."
            ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
