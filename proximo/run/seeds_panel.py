"""What a person sees while several seeds train: a row each in a live panel, plain lines elsewhere, nothing if quiet."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from proximo.run.panel import steps_bar

STATES = {"training": "green", "saving": "yellow", "failed": "red", "stopped": "yellow", "waiting": "dim", "done": ""}
AROUND = 6  # lines of a terminal that are not rows of seeds


@dataclass
class Row:
    """What is known of one seed's run."""

    seed: int
    total: int  # steps
    step: int = 0
    state: str = "waiting"  # one of STATES
    speed: float | None = None  # steps a second
    value: float | None = None  # mean return of the last episodes
    score: float | None = None  # of the last evaluation
    message: str = ""  # why it failed


class SeedsReporter(Protocol):
    """Told of everything that happens to several seeds, and shown them a few times a second."""

    def say(self, text: str) -> None: ...
    def show(self, rows: Sequence[Row]) -> None: ...
    def ended(self, row: Row) -> None: ...
    def close(self) -> None: ...


class SilentSeeds:
    """Says nothing."""

    def say(self, text: str) -> None: ...
    def show(self, rows: Sequence[Row]) -> None: ...
    def ended(self, row: Row) -> None: ...
    def close(self) -> None: ...


class SeedsLines:
    """A line every few seconds, and one for every seed that ends."""

    def __init__(self, console: Console, every: float = 10.0) -> None:
        self.console, self.every, self.last = console, every, time.monotonic()

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, rows: Sequence[Row]) -> None:
        if time.monotonic() - self.last < self.every:
            return
        self.last = time.monotonic()
        done, total = sum(row.step for row in rows), sum(row.total for row in rows)
        self.say(f"{done:,} of {total:,} steps | {' | '.join(f'{name} {text}' for name, text in totals(rows).items())}")

    def ended(self, row: Row) -> None:
        self.say(f"seed {row.seed} {row.state}: {row.message or f'step {row.step:,}, score {number(row.score)}'}")

    def close(self) -> None: ...


class SeedsPanel:
    """The sum of all seeds on top, a row for each below; shown when told to, so that no thread is needed."""

    def __init__(self, console: Console, title: str, rows: Sequence[Row]) -> None:
        self.console, self.title, self.rows, self.bar = console, title, rows, steps_bar()
        self.task = self.bar.add_task("", total=None, completed=sum(row.step for row in rows))
        self.live = Live(console=console, get_renderable=self.render, auto_refresh=False)
        self.live.start()

    def render(self) -> Panel:
        sums = Text("   ").join([Text.assemble((name, "dim"), " ", text) for name, text in totals(self.rows).items()])
        table = Table.grid(padding=(0, 2), expand=True)
        for justify, ratio in (("right", None), ("left", 1), *[("right", None)] * 3, ("left", None)):
            table.add_column(justify=justify, ratio=ratio, no_wrap=True)  # type: ignore[arg-type]
        shown = foremost(self.rows, max(3, self.console.size.height - AROUND))
        for row in shown:
            table.add_row(*cells(row))
        rest = Counter(row.state for row in self.rows) - Counter(row.state for row in shown)
        more = [Text("and " + ", ".join(f"{count} {state}" for state, count in rest.items()))] if rest else []
        return Panel(Group(self.bar, sums, table, *more), title=Text(self.title), title_align="left")

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    def show(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.bar.update(self.task, completed=sum(row.step for row in rows), total=sum(row.total for row in rows))
        self.live.refresh()

    def ended(self, row: Row) -> None:
        if row.message:
            self.say(f"seed {row.seed} {row.state}: {row.message}")

    def close(self) -> None:
        self.live.refresh()
        self.live.stop()


def seeds_reporter(quiet: bool, title: str, rows: Sequence[Row]) -> SeedsReporter:
    """The panel in a terminal, lines elsewhere; nothing if quiet."""
    if quiet:
        return SilentSeeds()
    console = Console(stderr=True)
    return SeedsPanel(console, title, rows) if console.is_terminal else SeedsLines(console)


def totals(rows: Sequence[Row]) -> dict[str, str]:
    """What is said of all seeds together: sums, and means over those that have the number."""
    values = [row.value for row in rows if row.value is not None]
    scores = [row.score for row in rows if row.state == "done" and row.score is not None]
    return {
        "done": f"{sum(row.state == 'done' for row in rows)} of {len(rows)} seeds",
        "steps/s": f"{sum(row.speed or 0 for row in rows if row.state == 'training'):,.0f}",
        "return": number(np.mean(values) if values else None),
        "score": number(np.mean(scores) if scores else None),
    }


def foremost(rows: Sequence[Row], room: int) -> list[Row]:
    """As many seeds as there is room for, those that train before those that wait or are done, in their order."""
    if len(rows) <= room:
        return list(rows)
    order = list(STATES)
    kept = sorted(range(len(rows)), key=lambda i: order.index(rows[i].state))[: room - 1]
    return [rows[i] for i in sorted(kept)]


def cells(row: Row) -> list[Any]:
    """One seed's line."""
    speed = f"{row.speed:,.0f} steps/s" if row.state == "training" and row.speed is not None else ""
    value = f"score {number(row.score)}" if row.state == "done" else f"return {number(row.value)}"
    bar = ProgressBar(total=row.total, completed=row.step)
    return [f"seed {row.seed}", bar, f"{row.step:,}/{row.total:,}", speed, value, Text(row.state, STATES[row.state])]


def number(value: Any) -> str:
    return "–" if value is None else f"{value:.1f}"
