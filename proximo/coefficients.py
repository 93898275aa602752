"""Numbers that change while training, as functions of the share of the run that is done."""

from __future__ import annotations


def linear(start: float, end: float, progress: float) -> float:
    """The value on the line from `start` at progress 0 to `end` at progress 1."""
    return start + (end - start) * min(max(progress, 0.0), 1.0)
