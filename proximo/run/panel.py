"""What a person sees while a run trains: a live panel in a terminal, plain lines elsewhere, nothing if quiet."""

from __future__ import annotations

import time
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from proximo.run.plan import Rating, with_deviation

Shown = tuple[tuple[str, str, str], ...]  # label, metric, format
LEARNING: Shown = (
    ("policy loss", "policy_loss", ".3g"),
    ("value loss", "value_loss", ".3g"),
    ("entropy", "entropy", ".3f"),
    ("KL", "kl", ".2g"),
    ("clip fraction", "clip_fraction", ".3f"),
    ("explained variance", "explained_variance", ".3f"),
    ("gradient norm", "grad_norm", ".3f"),
    ("learning rate", "lr", ".2e"),
)
SHOWN: dict[str, Shown] = {
    "environment steps": (
        ("return", "return_mean", ".1f"),
        ("episode length", "length_mean", ".1f"),
        ("episodes", "episodes", ",d"),
        ("steps/s", "steps_per_second", ",.0f"),
        *LEARNING,
    ),
    "updates": (
        ("reward", "return_mean", ".3f"),
        ("length", "length_mean", ".1f"),
        ("ended", "ended", ".0%"),
        ("KL to reference", "kl_ref", ".3f"),
        ("loss", "loss", ".3f"),
        ("accuracy", "accuracy", ".3f"),
        *LEARNING,
    ),
}
ALWAYS = {"environment steps": ("return", "steps/s", "policy loss", "value loss", "KL"), "updates": ()}


class Reporter(Protocol):
    """Told of everything that happens in a run."""

    def say(self, text: str) -> None: ...
    def update(self, metrics: dict[str, Any]) -> None: ...
    def evaluation(self, score: Rating) -> None: ...
    def close(self, done: bool) -> None: ...


class Silent:
    """Says nothing."""

    def say(self, text: str) -> None: ...
    def update(self, metrics: dict[str, Any]) -> None: ...
    def evaluation(self, score: Rating) -> None: ...
    def close(self, done: bool) -> None: ...


class Lines:
    """A line every few seconds, for logs and pipes."""

    def __init__(self, console: Console, total: int, unit: str, every: float = 10.0) -> None:
        self.console, self.total, self.unit = console, total, unit
        self.every, self.last = every, time.monotonic()

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def update(self, metrics: dict[str, Any]) -> None:
        if time.monotonic() - self.last < self.every:
            return
        self.last = time.monotonic()
        always, shown = ALWAYS[self.unit], SHOWN[self.unit]
        told = [row for row in shown if row[0] in always or (not always and metrics.get(row[1]) is not None)]
        parts = [f"{label} {shown_number(metrics, key, spec)}" for label, key, spec in told]
        self.say(f"{metrics['step']:,} of {self.total:,} {self.unit.split()[-1]} | {' | '.join(parts)}")

    def evaluation(self, score: Rating) -> None:
        self.say(f"evaluation: {with_deviation(score)} over {len(score.returns)} {score.counted}")

    def close(self, done: bool) -> None: ...


class LivePanel:
    """A progress bar with the time left over a table of the last update's metrics."""

    def __init__(self, console: Console, title: str, total: int, step: int, unit: str) -> None:
        self.title, self.metrics, self.score, self.shown = title, dict[str, Any](), "–", SHOWN[unit]
        self.bar = steps_bar()
        self.task = self.bar.add_task("", total=total, completed=step)
        self.live = Live(console=console, get_renderable=self.render, refresh_per_second=4)
        self.live.start()

    def render(self) -> Panel:
        table = Table.grid(padding=(0, 3), expand=True)
        numbers = [(label, shown_number(self.metrics, key, spec)) for label, key, spec in self.shown]
        cells = [Text.assemble((label, "dim"), f" {n}") for label, n in [*numbers, ("evaluation", self.score)]]
        for i in range(0, len(cells), 3):
            table.add_row(*cells[i : i + 3])
        return Panel(Group(self.bar, table), title=Text(self.title), title_align="left")

    def say(self, text: str) -> None:
        self.live.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def update(self, metrics: dict[str, Any]) -> None:
        self.metrics = metrics
        self.bar.update(self.task, completed=metrics["step"])

    def evaluation(self, score: Rating) -> None:
        self.score = with_deviation(score)

    def close(self, done: bool) -> None:
        if done:  # what is left is less than a rollout
            self.bar.update(self.task, total=self.bar.tasks[0].completed)
        self.live.stop()


def steps_bar() -> Progress:
    """Steps done of all steps, with the time gone and left."""
    return Progress(
        TextColumn("[bold]{task.percentage:>3.0f}%"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("steps ·"),
        TimeElapsedColumn(),
        TextColumn("gone,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )


def reporter_for(quiet: bool, title: str, total: int, step: int, unit: str = "environment steps") -> Reporter:
    """The panel in a terminal, lines elsewhere; nothing if quiet. `unit` is what a step is."""
    if quiet:
        return Silent()
    console = Console(stderr=True)
    return LivePanel(console, title, total, step, unit) if console.is_terminal else Lines(console, total, unit)


def shown_number(metrics: dict[str, Any], key: str, spec: str) -> str:
    value = metrics.get(key)
    return "–" if value is None else format(value, spec)
