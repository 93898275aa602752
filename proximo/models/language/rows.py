"""Whole rows of tokens, as a transformer takes them, from a batch of language and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from proximo.batch import Batch, tree_map

TOGETHER = 2**13  # tokens: what a model makes of more of them lies in fresh memory each time, not in a CPU's cache
LOGITS = 2**28  # numbers of what a model says of all tokens of a piece: 1 GiB


class Rows(NamedTuple):
    """Sequences side by side, prompts left-padded: all [M, S]."""

    token: Tensor  # int64
    live: Tensor  # bool: no padding before the prompt
    position: Tensor  # int64: from 0 at a text's first token

    @property
    def packed(self) -> bool:
        """Whether a row may hold several texts: such rows have no padding before them, and begin with a text."""
        return bool((self.position[:, 1:] == 0).logical_and(self.live[:, :-1]).any())

    def seen(self) -> Tensor:
        """transformers' attention mask: who is live, [M, S], or, where texts share a row, who sees whom."""
        return self.attention() if self.packed else self.live.long()

    def attention(self) -> Tensor:
        """Who is seen by whom, bool [M, 1, S, S]: what came before, of one's own text; padding sees itself alone."""
        text = (self.position == 0).cumsum(1)
        same = (text[:, :, None] == text[:, None, :]) & self.live[:, None, :]
        steps = self.token.shape[1]
        before = torch.ones(steps, steps, dtype=torch.bool, device=self.token.device).tril()
        itself = torch.eye(steps, dtype=torch.bool, device=self.token.device)
        return (same & before | itself)[:, None]


def together(batch: Batch, vocabulary: int = 1) -> int:
    """How many lanes (or pairs) of a batch are best evaluated at once: a power of two.

    On a CPU those of some 8,192 tokens; anywhere no more than logits over the vocabulary have room for.
    """
    sides, steps = batch.mask[0, :1].numel(), len(batch.mask)
    most = LOGITS // max(sides * steps * vocabulary, 1)
    if batch.mask.device.type == "cpu":
        most = min(most, TOGETHER // max(sides * (steps + batch.memory["token"].shape[2]), 1))
    return 2 ** max(0, most.bit_length() - 1)


def flat(batch: Batch) -> Batch:
    """Lanes with two sides, [T, N, 2], as lanes of their own, [T, N · 2]; others as they are."""
    if batch.mask.dim() == 2:
        return batch
    memory = {name: x.transpose(2, 3).flatten(1, 2) for name, x in batch.memory.items()}
    rest = {name: getattr(batch, name) for name in ("observation", "action", "mask")}
    return Batch(**rest).map(lambda x: x.flatten(1, 2)).replace(memory=memory)


def rows_of(batch: Batch) -> Rows:
    """What was seen: the prompts of a batch [T, N] and the tokens before each action, [N, P + T]."""
    return rows(batch, batch.observation["token"], batch.observation["position"])


def rows_after(batch: Batch) -> Rows:
    """What was written: the prompts of a batch [T, N] and all that followed, [N, P + 1 + T]."""
    first = tree_map(lambda x: x[:1], batch.observation)
    token = torch.cat([first["token"], batch.action])
    return rows(batch, token, torch.cat([first["position"], batch.observation["position"] + 1]))


def rows(batch: Batch, token: Tensor, position: Tensor) -> Rows:
    """Rows of the prompts before their last token, and tokens [T, N] with their positions."""
    prompt, live = batch.memory["token"][0], batch.memory["live"][0]
    before = (live.cumsum(1) - 1).clamp(min=0)
    token, position = token.T, position.T
    return Rows(
        torch.cat([prompt, token], 1),
        torch.cat([live, torch.ones_like(token, dtype=torch.bool)], 1),
        torch.cat([before, position], 1),
    )
