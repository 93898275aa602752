"""x Wᵀ + b in float32 whose rows do not depend on how many rows there are, by the faster of torch's two libraries.

MKL has no kernels for the 512-bit vectors of processors that are not Intel's; oneDNN, which comes with torch as well,
takes half of the time there. Both sum every element of a row in an order that the number of rows does not change, but
for a few rows alone: so a row that is computed among `FEWEST` or more is the same to the bit among thousands.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from proximo.kernels import made_by_intel

FEWEST = 16  # rows below which the libraries have other kernels


@cache
def onednn() -> Any:
    """oneDNN's product, None where MKL is as good."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or made_by_intel():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[M, K] x [N, K]ᵀ + [N] -> [M, N]."""
    op = onednn()
    return functional.linear(x, weight, bias) if op is None else op(x, weight, bias, "none", [], "")


def outer(a: Tensor, b: Tensor) -> Tensor:
    """aᵀ b of [M, N] and [M, K], [N, K]: the product takes its first factor by rows, so the smaller is turned."""
    return product(a.t(), b.t()) if a.shape[1] <= b.shape[1] else product(b.t(), a.t()).t()


class _Linear(torch.autograd.Function):
    """The product and its three derivatives, which are products of the same kind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), grad = ctx.saved_tensors, grads[0].contiguous()
        wanted = ctx.needs_input_grad
        return (
            product(grad, weight.t()) if wanted[0] else None,
            outer(grad, x) if wanted[1] else None,
            grad.sum(0) if wanted[2] else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., K] x [N, K]ᵀ + [N] -> [..., N], with gradients; what is no float32 on the CPU, by torch's own way."""
    numbers = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    if not numbers or torch.is_autocast_enabled("cpu"):
        return functional.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    few = FEWEST - rows.shape[0]
    y: Any = _Linear.apply(functional.pad(rows, (0, 0, 0, few)) if few > 0 else rows, weight, bias)
    return (y[: rows.shape[0]] if few > 0 else y).view(*x.shape[:-1], -1)
