"""Layers that transformers has too, with the numbers of their input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def rms(module: Any) -> Callable[[Tensor], Tensor]:
    """A norm of transformers (Zhang & Sennrich 2019, arXiv:1910.07467) as it is, but in float64 where its input is."""
    if not type(module).__name__.endswith("RMSNorm") or not hasattr(module, "variance_epsilon"):
        return module

    def norm(x: Tensor) -> Tensor:
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(exact.square().mean(-1, keepdim=True) + module.variance_epsilon)
        return module.weight * (exact * scale).to(x.dtype)

    return norm


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864) of [N, S, H, D], by halves."""
    first, second = x.chunk(2, -1)
    return x * cos[:, :, None] + torch.cat((-second, first), -1) * sin[:, :, None]
