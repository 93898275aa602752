"""Texts and pairs that are already there: what SFT, reward models and DPO learn from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from proximo.batch import Batch
from proximo.errors import ConfigError
from proximo.models.language.policy import in_pieces
from proximo.sources.text.examples import Example
from proximo.sources.text.loader import Loader
from proximo.sources.text.padding import completions, fitted, packed, pairs

Rows = Callable[[Sequence[Example]], Batch]


class TextSource:
    """Draws `count` examples at a time and makes a batch of them, with what the reference says of their tokens."""

    def __init__(
        self, loader: Loader[Example], rows: Rows, count: int, reference: bool = False, at_once: int | None = None
    ) -> None:
        self.loader, self.rows, self.count = loader, rows, count
        self.reference, self.at_once = reference, at_once
        self.episodes = Drawn()

    def restart(self, seed: int) -> None:
        """Nothing is open between two draws."""

    def close(self) -> None: ...

    def state_tensors(self) -> dict[str, Tensor]:
        return {**self.loader.state_tensors(), **self.episodes.state_tensors()}

    def collect(self, policy: Any) -> Batch:
        batch = self.batch(policy, self.loader.draw(self.count))
        self.episodes.add(self.count, batch)
        return batch

    def batch(self, policy: Any, examples: Sequence[Example]) -> Batch:
        """These examples as a policy evaluates them."""
        batch = self.rows(examples).to(policy.device)
        return (
            batch.replace(ref_logp=in_pieces(batch, self.at_once, policy.reference_logp, policy.vocabulary))
            if self.reference
            else batch
        )


def as_texts(pad: int, length: int | None = None) -> Rows:
    """Prompts and their completions: a lane each, or packed into lanes of `length`."""

    def rows(examples: Sequence[Example]) -> Batch:
        both = [(each.prompt, each.answers[0]) for each in examples]
        if length is None:
            return completions([prompt for prompt, _ in both], [answer for _, answer in both], pad)
        lanes = fitted([len(prompt) + len(answer) - 1 for prompt, answer in both], length)
        return packed([[both[i] for i in lane] for lane in lanes], length, pad)

    return rows


def as_pairs(pad: int) -> Rows:
    """Prompts, and of each a chosen and a rejected completion."""

    def rows(examples: Sequence[Example]) -> Batch:
        chosen, rejected = zip(*(each.answers for each in examples), strict=True)
        batch = pairs([each.prompt for each in examples], chosen, rejected, pad)
        if all("margin" not in each.columns for each in examples):
            return batch
        margin = torch.tensor([margin_of(each) for each in examples])
        return batch.replace(margin=margin.expand(batch.mask.shape[:2]))

    return rows


def margin_of(example: Example) -> float:
    """How far apart a pair should be, from its column `margin`; ConfigError for what is no number."""
    margin = example.columns.get("margin")
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
        raise ConfigError(f"the margin of the pair of {example.text[-60:]!r} is {margin!r}: it must be a finite number")
    return float(margin)


class Drawn:
    """How many examples and tokens were learned from."""

    def __init__(self) -> None:
        self.count, self.tokens = torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64)

    def add(self, count: int, batch: Batch) -> None:
        self.count += count
        self.tokens += batch.mask.sum().cpu()

    def metrics(self) -> dict[str, float | int | None]:
        """episodes (examples) and tokens so far; examples have no returns."""
        return {"episodes": int(self.count), "tokens": int(self.tokens), "return_mean": None, "length_mean": None}

    def state_tensors(self) -> dict[str, Tensor]:
        return {"count": self.count, "tokens": self.tokens}
