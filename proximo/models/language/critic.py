"""What a text so far is worth: a linear head on the policy's own layers, or trunks of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from proximo.models.language.rows import Rows


def head(width: int, spread: float) -> nn.Linear:
    """A number from the last layer's, with weights N(0, spread²) and no bias to begin with."""
    linear = nn.Linear(width, 1)
    nn.init.normal_(linear.weight, std=spread)
    nn.init.zeros_(linear.bias)
    return linear


class Critic(nn.Module):
    """K heads on trunks [K], or one on the policy's last layer where there is no trunk.

    Heads begin at zero (Ziegler et al. 2019); those of several critics begin apart, for two that agree say nothing.
    """

    def __init__(self, width: int, trunks: list[Any] | None = None, spread: float = 0.0) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(trunks or [])
        self.heads = nn.ModuleList(head(width, spread) for _ in range(self.count))

    @property
    def count(self) -> int:
        return max(len(self.trunks), 1)

    @property
    def shares(self) -> bool:
        """Whether it looks at the policy's own layers."""
        return not len(self.trunks)

    def forward(self, rows: Rows, steps: int, hidden: Tensor | None) -> Tensor:
        """Values [M, T, K] of the last `steps` tokens of each row; `hidden` [M, T, D] is the policy's last layer."""
        seen = [hidden] if self.shares else [looked(trunk, rows)[:, -steps:] for trunk in self.trunks]
        return torch.cat([of(x) for of, x in zip(self.heads, seen, strict=True)], -1)


def looked(trunk: Any, rows: Rows) -> Tensor:
    """What a trunk's last layer makes of every token, [M, S, D]."""
    out = trunk(input_ids=rows.token, attention_mask=rows.seen(), position_ids=rows.position, use_cache=False)
    return out.last_hidden_state
