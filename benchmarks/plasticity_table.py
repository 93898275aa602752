"""The table and the picture of benchmarks/plasticity.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from proximo.run.plot import along, band

Row = dict[str, Any]
ABOUT = {
    "default": "tanh, 4 epochs",
    "relu": "ReLU, 4 epochs",
    "epochs": "tanh, 12 epochs",
}
HELPS = {"": "no help", "layer norm": "LayerNorm", "betas": "Adam(0.99, 0.99)", "both": "both"}
LAST = 10  # phases at the end, that are compared with the first
PANELS = (("reward a step", 1), ("feature rank (actor)", 2), ("dead units", 3))


def groups(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """The runs of each setting."""
    names = [(stress, help) for stress in ABOUT for help in HELPS]
    found = {name: [row for row in rows if (row["stress"], row["help"]) == name] for name in names}
    return {name: some for name, some in found.items() if some}


def table(rows: list[Row]) -> str:
    """plasticity.md."""
    lines = [
        "# Plasticity: the same network, asked something else again and again",
        "",
        "64 random patterns, four actions, one of them right for each pattern and worth 1; chance is 0.25. After every",
        "phase all rewards change: what is right is drawn anew. For a new network every phase is as hard as the first;",
        "one that was sure of what is wrong now has that to unlearn too. First: the reward a step in the last quarter",
        f"of the first phase. Last: the same, the mean of the last {LAST} phases, and each seed's. Rank: the",
        "`feature_rank` of the actor's last layer, of 64, and dead: `dead_units`, at the end of the first phase → in",
        "the last phases.",
        "",
        "| setting | what helps | seeds | first | last | each seed | rank | dead |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (stress, help), some in groups(rows).items():
        first, last = ([np.mean(part) for part in parts] for parts in zip(*(ends(row) for row in some), strict=True))
        begin, end = (np.mean([looks(row)[i] for row in some], 0) for i in (0, 1))
        pilot = "" if len(some) >= 10 else " (pilot)"
        lines.append(
            f"| {ABOUT[stress]} | {HELPS[help]} | {len(some)}{pilot} | {np.mean(first):.2f} | **{np.mean(last):.2f}** "
            f"| {', '.join(f'{x:.2f}' for x in last)} | {begin[0]:.1f} → {end[0]:.1f} | {begin[1]:.1%} → {end[1]:.1%} |"
        )
    lines += ["", "![reward, rank and dead units over steps](plasticity.png)", ""]
    shapes = sorted({(len(row["phases"]) - 1, row["every"], row["steps"]) for row in rows})
    lines += [f"Runs of {steps:,} steps: {changes} changes, one every {every:,}." for changes, every, steps in shapes]
    lines += ["Seeds are 0, 1, 2, …; a seed draws patterns and rewards too. Fewer than ten seeds are a pilot.", ""]
    lines += [f"    {command}" for command in sorted({row["command"] for row in rows})] + [""]
    for described in sorted({json.dumps([row["machine"], row["versions"]]) for row in rows}):
        where, with_what = json.loads(described)
        lines.append(f"Machine: {where}. Versions: {', '.join(f'{k} {v}' for k, v in with_what.items())}.")
    return "\n".join(lines) + "\n"


def ends(row: Row) -> tuple[list[float], list[float]]:
    """Rewards of the first phase, and of the last ones."""
    return row["phases"][:1], row["phases"][1:][-LAST:]


def looks(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """Rank and dead units at the end of the first phase, and in the mean of the last ones."""
    curve = np.array(row["curve"])
    first, last = curve[:, 0] <= row["every"], curve[:, 0] > row["every"] * max(1, len(row["phases"]) - LAST)
    return curve[first][-1, 2:], curve[last][:, 2:].mean(0)


def draw(rows: list[Row], out: Path) -> None:
    """A column for each setting: the mean over seeds, a band from smallest to largest; grey lines are changes."""
    from matplotlib.figure import Figure

    shown = [stress for stress in ABOUT if any(row["stress"] == stress for row in rows)]
    if not shown:
        return
    figure = Figure(figsize=(5.5 * len(shown), 8), dpi=110, layout="constrained")
    panels = figure.subplots(len(PANELS), len(shown), sharex="col", sharey="row", squeeze=False)
    for (stress, help), some in groups(rows).items():
        curves = [np.array(row["curve"]) for row in some]
        colour = f"C{list(HELPS).index(help)}"
        for axes, (_, column) in zip(panels[:, shown.index(stress)], PANELS, strict=True):
            x, low, middle, high = band([(curve[:, 0], curve[:, column]) for curve in curves])
            axes.plot(x, middle, color=colour, linewidth=1.2, label=f"{HELPS[help]} ({len(some)} seeds)")
            axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    for stress, column in zip(shown, panels.T, strict=True):
        some = [row for row in rows if row["stress"] == stress]
        for axes, (label, _) in zip(column, PANELS, strict=True):
            along(axes, "", label if stress == shown[0] else "")
            axes.grid(visible=False)
            for change in np.arange(some[0]["every"], some[0]["steps"], some[0]["every"]):
                axes.axvline(change, color="grey", linewidth=0.4, alpha=0.5)
        column[0].set_title(ABOUT[stress], fontsize=10)
        column[0].legend(loc="best", fontsize=8)
        column[-1].set_xlabel("environment steps (grey: the rewards change)")
    figure.savefig(out)
