"""Watching for reward hacking: a policy that pleases its reward and nobody else shows it in what it writes.

Each sign is compared with the run's own first collection, or first evaluation; an alarm is told when it begins, and
again only after `CALM` updates without it: one that comes and goes around its threshold is told once.
Thresholds are fields of LanguageRun; None switches one off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from proximo.run.folder import EVALS, METRICS, read_rows

Row = Mapping[str, Any]
CALM = 10  # updates after which an alarm is news again


class Thresholds(Protocol):
    """How much is too much; see `LanguageRun`."""

    @property
    def alarm_kl(self) -> float | None: ...
    @property
    def alarm_length(self) -> float | None: ...
    @property
    def alarm_repetition(self) -> float | None: ...
    @property
    def alarm_entropy(self) -> float | None: ...
    @property
    def alarm_gold(self) -> float | None: ...


class Watch:
    """Looks at every update and evaluation of a run; what it knows of the past is in the run's own files."""

    def __init__(self, limits: Thresholds) -> None:
        self.limits = limits
        self.first: Row = {}  # update
        self.recent: list[Row] = []
        self.scores: list[Row] = []

    def updated(self, folder: Path, row: Row) -> list[str]:
        """The alarms that this update raised, in words, and the `CALM` before it did not."""
        if not self.first:
            earlier: list[Row] = [r for r in read_rows(folder / METRICS) if r["step"] < row["step"]]
            self.first, self.recent = (earlier or [row])[0], earlier[-CALM:]
        told = {name for before in self.recent for name, _ in signs(self.limits, self.first, before)}
        self.recent = [*self.recent, row][-CALM:]
        return [text for name, text in signs(self.limits, self.first, row) if name not in told]

    def evaluated(self, folder: Path, row: Row) -> list[str]:
        """The alarm of an evaluation whose gold reward fell while the reward that is learned rose."""
        if not self.scores:
            self.scores = [r for r in read_rows(folder / EVALS) if r["step"] < row["step"]]
        self.scores.append(row)
        now, before = (strayed(self.limits, self.scores[:i]) for i in (None, -1))
        return [now] if now is not None and before is None else []


def signs(limits: Thresholds, first: Row, row: Row) -> Iterator[tuple[str, str]]:
    """What is too much in an update's metrics: name, and what there is to say."""
    here, kl, repetition = f"alarm at update {row.get('step')}", row.get("kl_ref"), row.get("repetition")
    (length, began), (entropy, varied) = ((row.get(name), first.get(name)) for name in ("length_mean", "entropy"))
    if over(kl, limits.alarm_kl):
        yield "kl", f"{here}: {kl:.3g} nats a sequence from the reference (alarm_kl is {limits.alarm_kl:g})"
    if began and length and over(max(length / began, began / length), limits.alarm_length):
        yield "length", f"{here}: completions have {length:.1f} tokens, and had {began:.1f} at first"
    if over(repetition, limits.alarm_repetition) and over(repetition, 2 * (first.get("repetition") or 0.0)):
        yield "repetition", f"{here}: {repetition:.0%} of the tokens repeat what stands before them"
    if varied and entropy is not None and limits.alarm_entropy is not None and entropy < limits.alarm_entropy * varied:
        yield "entropy", f"{here}: the entropy is {entropy:.3g} nats a token, and was {varied:.3g} at first"


def over(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value > limit


def strayed(limits: Thresholds, scores: Sequence[Row]) -> str | None:
    """What there is to say where the gold reward is below its best by more than it should be, and the reward above."""
    told = [row for row in scores if row.get("gold") is not None]
    if limits.alarm_gold is None or len(told) < 2:
        return None
    best, last = max(told, key=lambda row: row["gold"]), told[-1]
    gained = best["gold"] - told[0]["gold"] or abs(best["gold"])  # what it was, where it never rose
    fell, rose = best["gold"] - last["gold"], last["return_mean"] - best["return_mean"]
    if rose <= 0 or fell <= limits.alarm_gold * gained:
        return None
    words = f"the gold reward fell from {best['gold']:.3g} (update {best['step']}) to {last['gold']:.3g}"
    return f"alarm at update {last['step']}: {words} while the reward rose by {rose:.3g}: it is over-optimised"
