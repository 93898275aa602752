"""The pictures of benchmarks/mujoco.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mujoco_cost import Clock
from mujoco_plan import FASTEST, TASKS
from mujoco_published import ABLATION, BEST, LABELS
from mujoco_results import Results, ablation_scores
from scores import FEWEST, interval, mean

from proximo.run.plot import band

COLOURS = {"tuned": "C0", "paper": "C1", "penalty": "C2", "trpo": "C3", "a2c": "C4", "natural": "C5"}
STEP, RETURN = 0, 2  # of a curve's point
WIDTH = 0.4  # of a bar


def draw(results: Results, clock: Clock, folder: Path) -> list[tuple[str, str]]:
    """Write all pictures that there are results for; their names and files."""
    found = [("return against steps", "mujoco-steps.png"), ("return against seconds", "mujoco-seconds.png")]
    curves(results).savefig(folder / "mujoco-steps.png")
    curves(results, clock).savefig(folder / "mujoco-seconds.png")
    if bars(results, folder / "mujoco-surrogates.png"):
        found.append(("the surrogates", "mujoco-surrogates.png"))
    return found


def curves(results: Results, clock: Clock | None = None) -> Figure:
    """A panel for each task: the mean over seeds, and a band from the smallest to the largest.

    Against steps, or against the seconds that so many take side by side; what was not measured so is left out.
    """
    figure = Figure(figsize=(15, 7), dpi=110, layout="constrained")
    panels = figure.subplots(2, 4).ravel()
    for axes, env in zip(panels, TASKS, strict=False):
        for name, colour in COLOURS.items():
            lines = [np.array(row["curve"]) for row in results.of(name, env)]
            scale = 1.0 if clock is None else clock.at(name, env)
            if lines and scale is not None:
                steps, low, middle, high = band([(line[:, STEP], line[:, RETURN]) for line in lines])
                axes.plot(steps * scale, middle, color=colour, linewidth=1.5)
                axes.fill_between(steps * scale, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.axhline(BEST[env], color="grey", linestyle=":", linewidth=1)
        axes.set_title(env, fontsize=10)
        axes.grid(alpha=0.3)
        if clock is None:
            axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M" if x else "0")
    named(results, panels[len(TASKS)])
    figure.supxlabel("environment steps" if clock is None else "seconds of collecting and learning", fontsize=11)
    figure.supylabel("return, mean of the last 100 training episodes", fontsize=11)
    return figure


def named(results: Results, axes: Axes) -> None:
    """The colours' names, in a panel of their own."""
    axes.axis("off")
    for name, colour in COLOURS.items():
        count = max((len(results.of(name, env)) for env in TASKS), default=0)
        if count:
            seeds = f"{count} seed" if count == 1 else f"up to {count} seeds"
            axes.plot([], [], color=colour, label=f"{name} ({seeds})")
    axes.plot([], [], color="grey", linestyle=":", label="the best published column of PPO")
    axes.legend(loc="center", frameon=False, fontsize=11)


def bars(results: Results, out: Path) -> bool:
    """The ablation beside the paper's; False where there is nothing of it yet."""
    names = [name for name in ABLATION if results.whole(name, FASTEST)]
    if not names:
        return False
    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for i, name in enumerate(names):
        scores = ablation_scores(results, name, FASTEST, names)
        axes.barh(i - WIDTH / 2, float(mean(scores)), WIDTH, color="C0", label="here, three tasks" if i == 0 else None)
        if (found := interval(scores, mean)) is not None:
            axes.plot(found, [i - WIDTH / 2] * 2, color="black", linewidth=1.2)
        axes.barh(i + WIDTH / 2, ABLATION[name], WIDTH, color="C7", label="the paper, seven tasks" if i == 0 else None)
    axes.set_yticks(range(len(names)), [LABELS[name] for name in names])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    lines = f"lines: 95 % bootstrap intervals, from {FEWEST} seeds on"
    axes.set_xlabel(f"average normalised score (chance 0, best run 1); {lines}")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    figure.savefig(out)
    return True
