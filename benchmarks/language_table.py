"""language.json, and language-parity.json beside it, as a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from language_works import WORKS

Row = dict[str, Any]
NAMES = {"ours": "Proximo", "trl": "TRL", "trl_pieces": "TRL, 32 sequences at once"}
PRECISIONS = ("float32", "bfloat16")


def write_table(path: Path) -> None:
    """language.md beside the results."""
    rows = json.loads(path.read_text()) if path.exists() else []
    good, parity = [row for row in rows if "error" not in row], path.with_name("language-parity.json")
    lines = [*heading(good), ""]
    for work in WORKS.values():
        for precision in PRECISIONS:
            mine = [row for row in good if (row["work"], row["precision"]) == (work.name, precision)]
            if mine:
                lines += [f"## {work.name}, {precision}", "", f"{work.said[0].upper()}{work.said[1:]}.", ""]
                lines += [*table(mine), ""]
    if failed := [row for row in rows if "error" in row]:
        lines += ["## What did not run", "", "| work | precision | peer | seed | why |", "|---|---|---|---|---|"]
        lines += [
            f"| {r['work']} | {r['precision']} | {NAMES[r['peer']]} | {r['seed']} | {r['error'].replace('|', '/')} |"
            for r in failed
        ]
        lines.append("")
    if parity.exists():
        lines += said(json.loads(parity.read_text()))
    path.with_suffix(".md").write_text("\n".join(lines))


def heading(rows: list[Row]) -> list[str]:
    """What was measured, where, with what, and how to do it again."""
    lines = [
        "# Language, against TRL",
        "",
        "A GPT-2 of 3.3 million weights (4 layers of 256, 512 words), two threads. Model, data, lengths and settings",
        "are the same; layers are not computed again in the backward pass, as they are by TRL's default. s/step: the",
        "rounds' medians, their median [least–most], all between two steps in it. ratio: TRL's over Proximo's of the",
        "same round, median over rounds. drawing: of a step, sampling completions. memory: largest resident size.",
        "",
        "    python benchmarks/language.py",
        "",
    ]
    if rows:
        loads = [row["load_before"] for row in rows]
        lines += [
            f"Machine: {'; '.join(sorted({row['machine'] for row in rows}))}. Load average before a run: "
            f"median {np.median(loads):.1f}, at most {max(loads):.1f}. Fewer than ten rounds are a pilot.",
            "",
        ]
    described = {", ".join(f"{name} {number}" for name, number in row["versions"].items()) for row in rows}
    return lines + [f"- {versions}" for versions in sorted(described)]


def table(rows: list[Row]) -> list[str]:
    lines = ["| peer | s/step | ratio | drawing s | learning s | memory MB | rounds |", "|---|---|---|---|---|---|---|"]
    for peer in NAMES:
        mine = [row for row in rows if row["peer"] == peer]
        if not mine:
            continue
        ours = {row["seed"]: row["seconds"] for row in rows if row["peer"] == "ours"}
        ratio = [row["seconds"] / ours[row["seed"]] for row in mine if row["seed"] in ours]
        drawn = [row["drawing"] for row in mine if row["drawing"] is not None]
        seconds = [row["seconds"] for row in mine]
        rest = [row["seconds"] - (row["drawing"] or 0) for row in mine]
        cells = [
            f"{np.median(seconds):.3f} [{min(seconds):.3f}–{max(seconds):.3f}]",
            "–" if peer == "ours" or not ratio else f"{np.median(ratio):.2f}",
            f"{np.median(drawn):.3f}" if drawn else "–",
            f"{np.median(rest):.3f}",
            f"{np.median([row['memory_mb'] for row in mine]):,.0f}",
            str(len(mine)),
        ]
        lines.append(f"| {NAMES[peer]} | {' | '.join(cells)} |")
    return lines


def said(parity: Row) -> list[str]:
    """Where the losses of the two agree, and where they do not."""
    versions = ", ".join(f"{name} {number}" for name, number in parity["versions"].items())
    lines = [
        "## The same losses",
        "",
        "Both evaluate the same model on the same batch, the policy having moved since it sampled, float32. apart: the",
        "difference of the losses; of the gradients, the largest difference of an element by the largest element.",
        "",
        "    python benchmarks/language.py --parity",
        "",
        f"- {versions}",
        "",
        "| loss | TRL | Proximo | apart | gradient apart | agrees to 1e-5 | why not |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in parity["rows"]:
        cells = (
            row["name"],
            f"{row['theirs']:.7f}",
            f"{row['ours']:.7f}",
            f"{row['apart']:.1e}",
            f"{row['gradient']:.1e}",
        )
        agrees = row["apart"] < 1e-5 and row["gradient"] < 1e-4
        lines.append(f"| {' | '.join(cells)} | {'yes' if agrees else 'no'} | {row['why']} |")
    return [*lines, ""]
