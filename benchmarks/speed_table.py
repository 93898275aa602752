"""speed.json as a table and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from works import WORKS

Row = dict[str, Any]
REFERENCE = "stable_baselines3"
SAME_TASK = {"A-tensor": "A"}  # where the reference does not do a work: the work it is held against
NAMES = {
    "ours": "Proximo",
    "ours_uncompiled": "Proximo, uncompiled",
    "ours_bfloat16": "Proximo, bfloat16",
    "stable_baselines3": "Stable-Baselines3",
    "rsl_rl": "RSL-RL",
    "tianshou": "Tianshou",
    "torchrl": "TorchRL",
    "sample_factory": "Sample Factory",
    "rllib": "RLlib",
    "jax_ppo": "a script in JAX",
}

SAID = {
    "A": "CartPole-v1, 8 lanes × 128 steps, 4 epochs of 4 minibatches of 256.",
    "A-tensor": "The same task, its environment in arrays of the library; the ratio is to the reference on A.",
    "A-update": "A's update alone, on random data: median of a minibatch's time.",
    "B": "HalfCheetah-v5, 1 lane × 2048 steps, 10 epochs of 32 minibatches of 64, observations and rewards normalised.",
    "B8": "The same with 8 lanes × 256 steps.",
    "B-update": "B's update alone, on random data: median of a minibatch's time.",
    "C": "Pong, NatureCNN, 8 lanes × 128 steps, 4 epochs of 4 minibatches of 256, two threads; nothing is compiled.",
}


def write_table(path: Path) -> None:
    """speed.md and speed.png beside the results."""
    rows = json.loads(path.read_text()) if path.exists() else []
    good = [row for row in rows if "error" not in row]
    if not good:
        print("no results to write a table from")
        return
    works = [work for work in WORKS if any(row["work"] == work for row in rows)]
    lines = [*heading(good), ""]
    for work in works:
        lines += [f"## {work}", "", SAID[work] + where(good, work), "", *table(good, work), ""]
    if failed := [row for row in rows if "error" in row]:
        lines += ["## What did not run", "", "| work | peer | seed | why |", "|---|---|---|---|"]
        lines += [
            f"| {r['work']} | {NAMES.get(r['peer'], r['peer'])} | {r['seed']} | {r['error'].replace('|', '/')} |"
            for r in failed
        ]
        lines.append("")
    path.with_suffix(".md").write_text("\n".join(lines))
    draw(good, works, path.with_suffix(".png"))


def heading(rows: list[Row]) -> list[str]:
    """What was measured, where, with what, and how to do it again."""
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        f"# Speed{pilot(rows)}",
        "",
        f"Seeds from {seeds[0]} on, one run each, in as many rounds as the last column says"
        f"{'; under ten is a pilot' if pilot(rows) else ''}.",
        "steps/s: environment steps a second over the whole training, start-up, imports and compilation excluded;",
        "median [least–most] of the rounds. ratio: median of the ratios to Stable-Baselines3 in the same round.",
        "update: microseconds for one minibatch, measured in training. collecting: share of the time outside updates.",
        "memory: largest resident size. return: mean of the last training episodes, to see that something is learned.",
        "",
        "    python benchmarks/speed.py --works WORK --peers PEER … --rounds ROUNDS",
        "",
        f"Machine: {'; '.join(sorted({row['machine'] for row in rows}))}. Load average before a run: "
        f"median {np.median([row['load_before'] for row in rows]):.1f}, "
        f"at most {max(row['load_before'] for row in rows):.1f}.",
        "",
    ]
    described = {(row["peer"], ", ".join(f"{k} {v}" for k, v in row["versions"].items())) for row in rows}
    return lines + [f"- {NAMES.get(peer, peer)}: {versions}" for peer, versions in sorted(described)]


def where(rows: list[Row], work: str) -> str:
    """The machine of a work, where not all were done on one."""
    all_of_them, its = ({row["machine"] for row in some} for some in (rows, [r for r in rows if r["work"] == work]))
    return f" On {' and '.join(sorted(its))}." if len(all_of_them) > 1 else ""


def pilot(rows: list[Row]) -> str:
    return " (pilot)" if len({row["seed"] for row in rows}) < 10 else ""


def table(rows: list[Row], work: str) -> list[str]:
    """One work's rows, the quickest first."""
    mine = {peer: [row for row in rows if row["work"] == work and row["peer"] == peer] for peer in peers(rows, work)}
    lines = [
        "| peer | steps/s | ratio | update µs | collecting | memory MB | compiling s | return | steps | rounds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for peer, runs in mine.items():
        ratio = ratios(rows, work, peer)
        cells = [
            spread([run["steps_per_second"] for run in runs]),
            f"{np.median(ratio):.2f}" if ratio else "–",
            spread([run["update_us"] for run in runs]),
            middle([run["collect_share"] for run in runs], ".0%"),
            middle([run["memory_mb"] for run in runs], ",.0f"),
            middle([run.get("compile_seconds") for run in runs], ".1f"),
            middle([run["final_return"] for run in runs], ",.0f"),
            ", ".join(f"{steps:,}" for steps in sorted({run["steps"] for run in runs})),
            str(len(runs)),
        ]
        lines.append(f"| {NAMES.get(peer, peer)} | {' | '.join(cells)} |")
    return lines


def peers(rows: list[Row], work: str) -> list[str]:
    """Who did this work, the quickest first; where no speed was measured, the shortest update first."""

    def slowness(peer: str) -> float:
        runs = [row for row in rows if row["work"] == work and row["peer"] == peer]
        rates = known([run["steps_per_second"] for run in runs])
        return -float(np.median(rates)) if rates else float(np.median(known([run["update_us"] for run in runs])))

    return sorted({row["peer"] for row in rows if row["work"] == work}, key=slowness)


def ratios(rows: list[Row], work: str, peer: str) -> list[float]:
    """Speed over the reference's, of each round that has both."""
    rate = {(row["work"], row["peer"], row["seed"]): row["steps_per_second"] for row in rows}
    other = work if any(k[:2] == (work, REFERENCE) for k in rate) else SAME_TASK.get(work, work)
    pairs = [(rate.get((work, peer, seed)), rate.get((other, REFERENCE, seed))) for seed in {k[2] for k in rate}]
    return [mine / theirs for mine, theirs in pairs if mine and theirs]


def known(values: list[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def spread(values: list[float | None]) -> str:
    """Median [least–most]."""
    there = known(values)
    return f"{np.median(there):,.0f} [{min(there):,.0f}–{max(there):,.0f}]" if there else "–"


def middle(values: list[float | None], form: str) -> str:
    there = known(values)
    return format(float(np.median(there)), form) if there else "–"


def draw(rows: list[Row], works: list[str], path: Path) -> None:
    """A panel for each work that has speeds: a bar at the median, a line from the least to the most."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [w for w in works if any(row["work"] == w and row["steps_per_second"] for row in rows)]
    if not shown:
        return
    heights = [len(peers(rows, work)) + 1 for work in shown]
    figure, axes = plt.subplots(
        len(shown), 1, figsize=(7, 0.33 * sum(heights) + 0.5 * len(shown)), squeeze=False, height_ratios=heights
    )
    for axis, work in zip(axes[:, 0], shown, strict=True):
        names = peers(rows, work)[::-1]
        for place, peer in enumerate(names):
            rates = [row["steps_per_second"] for row in rows if row["work"] == work and row["peer"] == peer]
            median = float(np.median(rates))
            axis.barh(place, median, color="#1f6f8b" if peer.startswith("ours") else "#b9c4c9", height=0.7)
            axis.plot([min(rates), max(rates)], [place, place], color="black", linewidth=1)
            axis.annotate(f"{median:,.0f}", (max(rates), place), (4, 0), textcoords="offset points", va="center")
        axis.set_yticks(range(len(names)), [NAMES.get(peer, peer) for peer in names])
        axis.set_ylim(-0.7, len(names) - 0.3)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.set_title(f"{work}: {WORKS[work].env}, steps per second{pilot(rows)}", loc="left", fontsize=10)
        axis.margins(x=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
