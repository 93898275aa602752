"""Learning curves: one line a setting, a band where it was run with several seeds."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from proximo.errors import ConfigError, RunFolderError
from proximo.run.files import replace_durably
from proximo.run.folder import EVALS, METRICS, read_config, read_rows, seed_folders

MOST_SHOWN = 3  # differing settings in a legend's line
Curve = tuple[np.ndarray, np.ndarray]  # steps, returns


def plot_runs(folders: Sequence[Path], out: Path) -> None:
    """Draw the training returns of runs against steps; runs that differ only in their seed share a line and a band.

    The line is the mean over seeds, the band their smallest and largest; points are evaluations. A folder of several
    seeds stands for those of them in which an episode has ended.
    """
    from matplotlib.figure import Figure  # a third of the memory and time of importing us

    if not folders:
        raise RunFolderError("which runs? for example: proximo plot runs/* --out curves.png")
    runs = [run for path in folders for run in (seed_folders(path) or [path]) if run == path or has_curve(run)]
    grouped = groups(runs)
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    if not any(has_curve(folder) for folder in runs):
        raise RunFolderError(f"no episode has ended yet in {', '.join(map(str, folders))}: there is no curve to draw")
    environments: set[str] = set()
    differing = differences([read_config(group[0]).to_json() for group in grouped])
    for number, group in enumerate(grouped):
        config = read_config(group[0])
        environments.add(config.env)
        seeds = f"{len(group)} seeds" if len(group) > 1 else f"seed {config.run.seed}"
        look: dict[str, Any] = {"color": f"C{number}"}
        curves = [curve for folder in group if len((curve := curve_of(folder, METRICS))[0])]
        steps, low, mean, high = band(curves) if curves else (np.zeros(0),) * 4
        axes.plot(steps, mean, label=" · ".join([config.env, config.algo, *differing[number], seeds]), **look)
        axes.fill_between(steps, low, high, alpha=0.2, linewidth=0, **look)
        for folder in group:
            axes.plot(*curve_of(folder, EVALS), "o", markersize=4, **look)
    axes.set(xlabel="environment steps", ylabel="return (mean of the last 100 episodes)")
    axes.set_title(", ".join(sorted(environments)) + "   (points: evaluations, deterministic)", fontsize=10)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k" if x else "0")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=8)
    picture = io.BytesIO()
    try:
        figure.savefig(picture, format=out.suffix.removeprefix(".") or "png")
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_durably(out, picture.getvalue())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {out}: {error}") from None


def has_curve(folder: Path) -> bool:
    """Whether an episode has ended in the run, in training or in an evaluation."""
    return any(len(curve_of(folder, name)[0]) for name in (METRICS, EVALS))


def groups(folders: Sequence[Path]) -> list[list[Path]]:
    """Runs of one setting together: the same configuration but for the seed."""
    grouped: dict[str, list[Path]] = defaultdict(list)
    for folder in folders:
        setting = read_config(folder).to_json()
        setting["run"].pop("seed")
        grouped[json.dumps(setting, sort_keys=True)].append(folder)
    return list(grouped.values())


def differences(settings: Sequence[dict[str, Any]]) -> list[list[str]]:
    """What sets each configuration apart from the others, as "name value"."""
    sections = ("run", "algorithm", "network")
    flat = [{key: value for section in sections for key, value in setting[section].items()} for setting in settings]
    names = [name for name in flat[0] if name != "seed" and len({str(other.get(name)) for other in flat}) > 1]
    if len({setting["preset"] for setting in settings}) > 1:
        return [[f"preset {setting['preset']}"] for setting in settings]
    more = [f"{len(names) - MOST_SHOWN} more"] if len(names) > MOST_SHOWN else []
    return [[f"{name} {setting.get(name)}" for name in names[:MOST_SHOWN]] + more for setting in flat]


def curve_of(folder: Path, name: str) -> Curve:
    """Steps and mean returns, where there were any."""
    rows = [row for row in read_rows(folder / name) if isinstance(row.get("return_mean"), int | float)]
    return np.array([row["step"] for row in rows]), np.array([row["return_mean"] for row in rows], float)


def band(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps common to all, and the smallest, mean and largest return there (straight lines between points)."""
    first, last = max(c[0][0] for c in curves), min(c[0][-1] for c in curves)
    steps = np.linspace(first, last, 400) if len(curves) > 1 and last > first else curves[0][0]
    values = np.stack([np.interp(steps, *curve) for curve in curves])
    return steps, values.min(0), values.mean(0), values.max(0)
