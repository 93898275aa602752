"""Learning curves: one line a setting, a band where it was run with several seeds; and how far policies moved."""

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
from proximo.run.folder import DRIFT, EVALS, METRICS, read_plan, read_rows, seed_folders

COLOURS, LINES = 10, ("-", "--", ":")  # of matplotlib's cycle; what tells the eleventh line from the first
MOST_SHOWN = 3  # differing settings in a legend's line
Curve = tuple[np.ndarray, np.ndarray]  # steps, returns


def plot_runs(folders: Sequence[Path], out: Path) -> None:
    """Draw the training returns of runs against steps; runs that differ only in their seed share a line and a band.

    The line is the mean over seeds, the band their smallest and largest; points are evaluations. A folder of several
    seeds stands for those of them in which an episode has ended.
    """
    runs = [run for path in some(folders) for run in (seed_folders(path) or [path]) if run == path or has_curve(run)]
    grouped = groups(runs)
    figure = blank(4.5)
    axes = figure.add_subplot()
    if not any(has_curve(folder) for folder in runs):
        raise RunFolderError(f"no episode has ended yet in {', '.join(map(str, folders))}: there is no curve to draw")
    subjects: set[str] = set()
    differing = differences([read_plan(group[0]).to_json() for group in grouped])
    for number, group in enumerate(grouped):
        config = read_plan(group[0])
        subjects.add(config.title)
        different = len({read_plan(folder).run.seed for folder in group})
        seeds = f"{different} seeds" if different > 1 else f"seed {config.run.seed}"
        seeds += f" ({len(group)} runs)" if len(group) > different else ""
        look: dict[str, Any] = {"color": f"C{number}", "linestyle": LINES[number // COLOURS % len(LINES)]}
        curves = [curve for folder in group if len((curve := curve_of(folder, METRICS))[0])]
        steps, low, mean, high = band(curves) if curves else (np.zeros(0),) * 4
        axes.plot(steps, mean, label=" · ".join([config.title, config.algo, *differing[number], seeds]), **look)
        axes.fill_between(steps, low, high, alpha=0.2, linewidth=0, color=look["color"])
        for folder in group:
            axes.plot(*curve_of(folder, EVALS), "o", markersize=4, color=look["color"])
    axes.set_title(", ".join(sorted(subjects)) + "   (points: evaluations)", fontsize=10)
    along(axes, *read_plan(runs[0]).axes)
    axes.legend(loc="best", fontsize=8)
    write(figure, out)


def plot_drift(folders: Sequence[Path], out: Path) -> list[Path]:
    """Draw from drift.jsonl how far each update moved the policy, and how far it is from where drift is measured.

    A line is a run. Points are updates as they were asked for, where the bound cut or undid them. Returns the runs that
    are not drawn, as nothing was measured in them.
    """
    runs = [run for path in some(folders) for run in (seed_folders(path) or [path])]
    ledgers = {run: rows for run in runs if read_plan(run) and (rows := read_rows(run / DRIFT))}
    if not ledgers:
        advice = "train with --max-kl, --stop-drift or --drift-reference"
        raise RunFolderError(f"no drift was measured in {', '.join(map(str, folders))}: {advice}")
    configs = [read_plan(run) for run in ledgers]
    differing = differences([config.to_json() for config in configs])
    figure = blank(6.5)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for number, (config, rows) in enumerate(zip(configs, ledgers.values(), strict=True)):
        look: dict[str, Any] = {"color": f"C{number}"}
        label = " · ".join([config.title, config.algo, *differing[number], f"seed {config.run.seed}"])
        steps = column(rows, "step")
        upper.plot(steps, column(rows, "kl"), linewidth=1, label=label, **look)
        cut = column(rows, "alpha") < 1
        upper.plot(steps[cut], column(rows, "kl_asked")[cut], ".", markersize=4, alpha=0.6, **look)
        lower.plot(steps, column(rows, "drift"), **look)
        for axes, limit in ((upper, config.run.max_kl), (lower, config.run.stop_drift)):
            if limit is not None:
                axes.axhline(limit, linestyle="--", linewidth=1, **look)
    if all(row["kl"] is None for rows in ledgers.values() for row in rows):
        upper.text(0.5, 0.5, "not measured: train with --max-kl", ha="center", transform=upper.transAxes)
    else:
        upper.set_yscale("log", nonpositive="mask")
    upper.set_title("each update   (points: as asked, where the bound cut it; dashed: limits)", fontsize=10)
    lower.set_title("drift from the first policy, or from the reference that was named", fontsize=10)
    along(upper, "", "KL(old ‖ new), nats")
    along(lower, configs[0].axes[0], configs[0].drift_axis)
    figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", fontsize=8)
    write(figure, out)
    return [run for run in runs if run not in ledgers]


def some(folders: Sequence[Path]) -> Sequence[Path]:
    """At least one."""
    if not folders:
        raise RunFolderError("which runs? for example: proximo plot runs/* --out curves.png")
    return folders


def column(rows: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """One number a row; NaN where there is none."""
    values = [row.get(name) for row in rows]
    return np.array([value if isinstance(value, int | float) else np.nan for value in values], float)


def along(axes: Any, xlabel: str, ylabel: str) -> None:
    """Steps along the bottom, and a grid."""
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.set_major_formatter(
        lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k" if x >= 1e3 else f"{x:g}"
    )
    axes.grid(alpha=0.3)


def blank(height: float) -> Any:
    """A figure. What draws it is a third of the memory and time that importing us would take."""
    from matplotlib.figure import Figure

    return Figure(figsize=(8, height), dpi=120, layout="constrained")


def write(figure: Any, out: Path) -> None:
    """Save a picture, whole or not at all; ConfigError where it cannot be written."""
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
        setting = read_plan(folder).to_json()
        setting["run"].pop("seed")
        grouped[json.dumps(setting, sort_keys=True)].append(folder)
    return list(grouped.values())


def differences(settings: Sequence[dict[str, Any]]) -> list[list[str]]:
    """What sets each configuration apart from the others, as "name value"."""
    sections = ("run", "algorithm", "network")
    flat = [
        {key: value for section in sections for key, value in setting.get(section, {}).items()} for setting in settings
    ]
    names = [name for name in flat[0] if name != "seed" and len({str(other.get(name)) for other in flat}) > 1]
    if len({setting.get("preset") for setting in settings}) > 1:
        return [[f"preset {setting.get('preset')}"] for setting in settings]
    more = [f"{len(names) - MOST_SHOWN} more"] if len(names) > MOST_SHOWN else []
    return [
        [f"{name} {value}" for name in names[:MOST_SHOWN] if (value := setting.get(name)) is not None] + more
        for setting in flat
    ]


def curve_of(folder: Path, name: str) -> Curve:
    """Steps and mean returns, where there were any."""
    rows = [row for row in read_rows(folder / name) if isinstance(row.get("return_mean"), int | float)]
    return np.array([row["step"] for row in rows]), np.array([row["return_mean"] for row in rows], float)


def band(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps common to all, and the smallest, mean and largest return there (straight lines between points).

    Curves that have no steps in common have no band: there are none.
    """
    first, last = max(c[0][0] for c in curves), min(c[0][-1] for c in curves)
    steps = curves[0][0] if len(curves) == 1 else np.linspace(first, last, 400 if last >= first else 0)
    values = np.stack([np.interp(steps, *curve) for curve in curves])
    return steps, values.min(0), values.mean(0), values.max(0)
