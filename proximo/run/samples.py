"""What a model wrote at its last evaluation, as a table that people read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

SHOWN = {"prompt": 120, "completion": 400}  # characters: of a prompt its end, of a completion its beginning
MARKS = re.compile(r"([\\`*_~\[\]<>|#$])")  # what Markdown would take for its own


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The samples of the newest step among rows of samples.jsonl, as Markdown."""
    step = max((row["step"] for row in rows), default=0)
    lines = [f"# Samples of the evaluation at update {step:,}", "", "| reward | KL | prompt | completion |"]
    lines.append("|---:|---:|---|---|")
    for row in rows:
        if row["step"] == step:
            prompt, completion = (str(row.get(name, "")) for name in SHOWN)
            texts = cell(prompt[-SHOWN["prompt"] :]), cell(completion[: SHOWN["completion"]])
            lines.append(f"| {' | '.join([number(row.get('reward')), number(row.get('kl')), *texts])} |")
    return "\n".join([*lines, ""])


def number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–"


def cell(text: str) -> str:
    """A text in a row of a table, whatever it holds: line breaks and control characters are shown, not obeyed."""
    shown = "".join(c if c.isprintable() else "⏎" if c == "\n" else repr(c)[1:-1] for c in text)
    return MARKS.sub(r"\\\1", shown)
