"""The table and the pictures of benchmarks/rlhf.py."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
ABOUT = {
    "ppo loose": "PPO, small β",
    "ppo led": "PPO, β led to a KL",
    "best of n": "best of n",
}


ALARMS = {"gold falls, proxy rises": "C3", "KL": "C5"}  # colours


def steps_of(rows: list[Row], seed: int) -> dict[str, Row]:
    return {row["step"]: row for row in rows if row["seed"] == seed}


def seeds_of(rows: list[Row]) -> list[int]:
    return sorted({row["seed"] for row in rows})


def pooled(rows: list[Row]) -> dict[str, Row]:
    """Every step's row over all seeds: means, of what a policy is worth with their standard errors."""
    found: dict[str, Row] = {}
    for step in dict.fromkeys(row["step"] for row in rows):
        some = [row for row in rows if row["step"] == step]
        found[step] = some[0] | averaged(some)
        if "curve" in some[0]:
            found[step]["curve"] = [averaged(list(points)) for points in zip(*(r["curve"] for r in some), strict=True)]
        found[step]["alarms"] = [alarm for row in some for alarm in first_of_each(row.get("alarms", []))]
    return found


def averaged(some: list[Row]) -> Row:
    """The mean of every number; the standard error of gold, proxy and KL over seeds, or of one seed its own."""
    numbers = {name: [each[name] for each in some] for name, x in some[0].items() if is_number(x)}
    row: Row = {name: x[0] if len({*x}) == 1 else float(np.mean(x)) for name, x in numbers.items()}
    for name in {"gold", "proxy", "kl"} & row.keys() if len(some) > 1 else ():
        row[f"{name}_error"] = float(np.std([each[name] for each in some], ddof=1) / math.sqrt(len(some)))
        row[f"{name}_band"] = [min(each[name] for each in some), max(each[name] for each in some)]
    return row


def is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


def table(rows: list[Row]) -> str:
    """rlhf.md."""
    count = len(seeds_of(rows))
    every = f"{count} seeds" + (", a pilot" if count < 10 else "") if count > 1 else "one seed, a pilot"
    lines = [
        "# The whole RLHF pipeline, and over-optimisation",
        "",
        "A small Llama learns the sentences of Python's documentation (`pydoc_data.topics`). A hidden gold reward",
        "prefers some of its completions to others; a reward model learns from those pairs, and is the proxy that PPO",
        "and best-of-n optimise; DPO learns from the pairs. Gold and proxy are in standard deviations of SFT's own",
        f"completions, from their mean; KL is that of whole completions from SFT, nats. Means over {every}; ± is one",
        f"standard error over {'seeds' if count > 1 else 'prompts'}.",
        "",
        *compared(pooled(rows)),
        "",
        "Best of n: KL = log n − (n − 1) / n. PPO “on the way” is the run with the small β as it passed the KL of",
        "another policy; all others completed sentences that nobody learned from.",
        "",
    ]
    lines += ["![gold, proxy and KL over training](rlhf-training.png)", "", "![gold against KL](rlhf-kl.png)", ""]
    for seed in seeds_of(rows):
        lines += [f"## Seed {seed}", "", *told(steps_of(rows, seed)), ""]
    lines += ["Each step's settings are in rlhf.json. The command:", ""]
    lines += [f"    {command}" for command in sorted({row["command"] for row in rows})] + [""]
    for described in sorted({json.dumps([row["machine"], row["versions"], row["settings"]["text"]]) for row in rows}):
        where, what, text = json.loads(described)
        versions = ", ".join(f"{name} {version}" for name, version in what.items())
        lines.append(f"Machine: {where}. Versions: {versions}. SHA-256 of the text: {text[:16]}….")
    return "\n".join(lines) + "\n"


def told(found: dict[str, Row]) -> list[str]:
    """What SFT, preferences and the reward model came to, and where the alarm went off."""
    lines = []
    if row := found.get("sft"):
        lines.append(
            f"- SFT: {row['parameters']:,} parameters, {row['sentences']:,} sentences; {row['loss']:.2f} nats a token "
            "of sentences held out."
        )
    if row := found.get("pairs"):
        real = (row["sentences"] - row["mean"]) / row["deviation"]
        lines.append(
            f"- Preferences: {row['pairs']} pairs to learn from, {row['held']} held out. The documentation's own "
            f"sentences are worth {real:.2f} in gold."
        )
    if row := found.get("reward"):
        lines.append(
            f"- Reward model: {row['accuracy']:.1%} of held-out pairs, where gold itself tells {row['ceiling']:.1%}"
            f" ({row['accuracy_learned']:.1%} of those it saw); with gold it correlates {row['correlation']:.2f}."
        )
    for name in ("ppo loose", "ppo led"):
        if row := found.get(name):
            lines.append(f"- {ABOUT[name]}: {verdict(row)}")
    seconds = sum(row["seconds"] for row in found.values())
    return [*lines, f"- All of it took {seconds / 60:.0f} minutes."]


def verdict(row: Row) -> str:
    """The best gold of a run, the last, and its alarms."""
    best, last = max(row["curve"], key=lambda each: each["gold"]), row["curve"][-1]
    words = f"gold is {best['gold']:.2f} at best, at {best['kl']:.1f} nats (update {best['step']}), "
    words += f"and {last['gold']:.2f} at the end, where the proxy is {last['proxy']:.2f}"
    return "; ".join([words, *(each["alarm"] for each in first_of_each(row["alarms"]))]) + "."


def compared(found: dict[str, Row]) -> list[str]:
    """All methods in the order of their KL."""
    rows: list[tuple[float, str]] = []

    def add(name: str, row: Row) -> None:
        rows.append((row["kl"], f"| {name} | {' | '.join(number(row, x) for x in ('kl', 'gold', 'proxy'))} |"))

    ways = [row["kl"] for name, row in found.items() if name.startswith("dpo")]
    for row in found.get("best of n", {}).get("curve", ()):
        add(f"best of {row['n']}", row)
        ways += [row["kl"]] if row["n"] in (4, 16, 64) else []
    for name, row in found.items():
        if name.startswith(("ppo", "dpo")):
            about = ABOUT.get(name, "DPO, β = " + name.removeprefix("dpo "))
            add(f"{about}, at the end", row)
    if row := found.get("ppo loose"):
        passed = {one["step"]: one for one in (near(row["curve"][1:], kl) for kl in ways)}
        for step, one in passed.items():
            add(f"PPO on the way, update {step}", one)
    lines = ["| policy | KL | gold | proxy |", "|---|---|---|---|"]
    return [*lines, *(line for _, line in sorted(rows))]


def number(row: Row, name: str) -> str:
    """A number with its standard error, where that is known."""
    error = row.get(f"{name}_error")
    return f"{row[name]:.2f}" if error is None else f"{row[name]:.2f} ± {error:.2f}"


def near(curve: list[Row], kl: float) -> Row:
    """The evaluation whose KL is nearest to this."""
    return min(curve, key=lambda row: abs(row["kl"] - kl))


def draw(rows: list[Row], out: Path) -> None:
    """rlhf-training.png and rlhf-kl.png: means over the seeds, and a band from the least to the most of them."""
    if "ppo loose" in (found := pooled(rows)):
        draw_training(found, out / "rlhf-training.png")
        draw_kl(found, out / "rlhf-kl.png")


def draw_training(found: dict[str, Row], out: Path) -> None:
    """Gold and proxy, and KL, of both runs of PPO over updates; a dashed line is the first alarm of a seed."""
    from matplotlib.figure import Figure

    names = [name for name in ("ppo loose", "ppo led") if name in found]
    figure = Figure(figsize=(5.5 * len(names), 6.5), dpi=110, layout="constrained")
    panels = figure.subplots(2, len(names), sharex="col", sharey="row", squeeze=False, height_ratios=(2, 1))
    for name, (upper, lower) in zip(names, panels.T, strict=True):
        curve = found[name]["curve"]
        updates = column(curve, "step")
        for axes, what, colour, label in (
            (upper, "proxy", "C0", "proxy"),
            (upper, "gold", "C1", "gold"),
            (lower, "kl", "C2", "KL from SFT"),
        ):
            axes.plot(updates, column(curve, what), ".-", color=colour, label=label)
            if f"{what}_band" in curve[0]:
                low, high = np.array([row[f"{what}_band"] for row in curve]).T
                axes.fill_between(updates, low, high, color=colour, alpha=0.15, linewidth=0)
        said = set[str]()
        for each in found[name]["alarms"]:
            look: dict[str, Any] = dict(color=ALARMS.get(kind(each), "C4"), linestyle="--", linewidth=1)
            upper.axvline(each["step"], label=None if kind(each) in said else f"alarm: {kind(each)}", **look)
            lower.axvline(each["step"], **look)
            said.add(kind(each))
        beta = found[name]["settings"]["run"]["beta"]
        upper.set_title(f"{ABOUT[name]} ({'from ' if name == 'ppo led' else ''}{beta:g})", fontsize=10)
        lower.set_xlabel("updates")
        for axes in (upper, lower):
            axes.grid(alpha=0.3)
            axes.legend(loc="best", fontsize=8)
    panels[0, 0].set_ylabel("deviations of SFT's completions")
    panels[1, 0].set_ylabel("nats a completion")
    figure.savefig(out)


def draw_kl(found: dict[str, Row], out: Path) -> None:
    """Gold, and proxy, against √KL: PPO's way, best of n, DPO."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), dpi=110, layout="constrained")
    for axes, what in zip(figure.subplots(1, 2, sharex=True), ("gold", "proxy"), strict=True):
        for name, colour in (("ppo loose", "C0"), ("ppo led", "C4")):
            if name in found:
                curve = found[name]["curve"]
                kl = np.sqrt(np.maximum(column(curve, "kl"), 0))
                axes.plot(kl, column(curve, what), ".-", color=colour, label=ABOUT[name], linewidth=1)
                point(axes, found[name], what, "o", colour)
        if best := found.get("best of n"):
            kl, y, error = (np.array([row[x] for row in best["curve"]]) for x in ("kl", what, f"{what}_error"))
            axes.errorbar(np.sqrt(kl), y, error, marker="s", markersize=4, color="C1", label="best of n")
        for i, row in enumerate(row for name, row in found.items() if name.startswith("dpo")):
            point(axes, row, what, "^", "C2", "DPO" if i == 0 else None)
        axes.set_xlabel("√KL from SFT, √nats a completion")
        axes.set_title(f"{what}, deviations of SFT's completions", fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(loc="best", fontsize=8)
    figure.savefig(out)


def point(axes: Any, row: Row, what: str, marker: str, colour: str, label: str | None = None) -> None:
    """A policy at the end of its run, judged on its own completions."""
    place = math.sqrt(max(row["kl"], 0))
    axes.errorbar([place], [row[what]], [row[f"{what}_error"]], marker=marker, color=colour, label=label, linestyle="")


def column(rows: list[Row], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows])


def first_of_each(alarms: list[Row]) -> list[Row]:
    """The first alarm of every kind."""
    return list({kind(each): each for each in reversed(alarms)}.values())[::-1]


def kind(alarm: Row) -> str:
    """In a word or two, which alarm it is."""
    signs = {
        "gold": "gold falls, proxy rises",
        "nats a sequence": "KL",
        "completions": "length",
        "repeat": "repetition",
    }
    return next((word for sign, word in signs.items() if sign in alarm["alarm"]), "entropy")
