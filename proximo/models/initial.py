"""The weights that layers begin with."""

from __future__ import annotations

from typing import Any

from torch import nn


def orthogonal(layer: Any, gain: float = 2**0.5, blocks: int = 1) -> Any:
    """A layer with orthogonal weights (gain √2 where a ReLU comes next), block of rows by block, and zero biases."""
    for block in layer.weight.detach().chunk(blocks):
        nn.init.orthogonal_(block, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
