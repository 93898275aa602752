"""Convolutional networks for acting and judging: weights laid out for oneDNN once, each ReLU part of what comes before.

A convolution or product of torch's lays its weights out anew in every call, which for a few pictures takes as long as
the arithmetic. While a collection is made the weights stay as they are, so what was made of them may be kept.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from proximo.compiler.trace import tracing

Step = Callable[[Tensor], Tensor]
Laid = tuple[Tensor, int, list[Step]]  # a network's first weights, their version, and what to do with such weights
Layouts = dict[Any, Laid]  # of (network, rows)
_layouts: ContextVar[Layouts | None] = ContextVar("layouts", default=None)


def keep(layouts: Layouts | None) -> None:
    """From now on `packed` keeps there how it laid out weights, and finds it there; None where these may change."""
    _layouts.set(layouts)


def packed(network: nn.Sequential, images: Tensor, scale: float) -> Tensor | None:
    """The network's outputs for images [N, C, H, W] with the channels innermost; its first weights times `scale`.

    None where nothing is kept, where gradients are wanted, or where oneDNN is not at hand: the network is to be run.
    """
    layouts = _layouts.get()
    if layouts is None or torch.is_grad_enabled() or tracing() or not at_hand(images):
        return None
    first: Any = network[0]
    laid = layouts.get((network, len(images)))
    if laid is None or laid[0] is not first.weight or laid[1] != first.weight._version:  # none, or it was lent others
        steps, x = steps_of(network, images, scale)
        layouts[network, len(images)] = first.weight, first.weight._version, steps
        return x
    x = images
    for step in laid[2]:
        x = step(x)
    return x


@runtime_checkable
class Packing(Protocol):
    """A part of a network that has convolutions of its own."""

    def packed(self, x: Tensor) -> Step:
        """The same of inputs like `x`, by weights that are laid out once."""
        ...


def at_hand(x: Tensor) -> bool:
    """Whether torch has oneDNN's operations, of numbers like these."""
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    ops = torch.ops.mkldnn
    names = "_convolution_pointwise", "_reorder_convolution_weight", "_linear_pointwise", "_reorder_linear_weight"
    if not all(hasattr(ops, name) for name in names):
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and ops._is_mkldnn_bf16_supported())


def steps_of(network: nn.Sequential, x: Tensor, scale: float) -> tuple[list[Step], Tensor]:
    """What to do one after the other with inputs like `x`, and what that makes of `x`."""
    steps, left = list[Step](), list(network)
    while left:
        module, step = left.pop(0), None
        if isinstance(module, nn.Conv2d):
            step, scale = convolution(module, x, takes_relu(left), scale), 1.0
        elif isinstance(module, nn.Linear):
            step, scale = product(module, x, takes_relu(left), scale), 1.0
        elif isinstance(module, Packing):
            step = module.packed(x)
        steps.append(step or module)
        x = steps[-1](x)
    return steps, x


def takes_relu(left: list[nn.Module]) -> str:
    """What follows a product, which it can do itself; a ReLU is taken from what is left, also from behind a Flatten."""
    place = 1 if left and isinstance(left[0], nn.Flatten) else 0
    if len(left) > place and isinstance(left[place], nn.ReLU):
        del left[place]
        return "relu"
    return "none"


def convolution(module: nn.Conv2d, x: Tensor, then: str, scale: float = 1.0) -> Step:
    """The convolution of inputs like `x`, with `then` after it."""
    ops, (weight, bias) = torch.ops.mkldnn, of(module, x.dtype, scale)
    assert not isinstance(module.padding, str)
    padding, stride, dilation, groups = list(module.padding), module.stride, module.dilation, module.groups
    weight = ops._reorder_convolution_weight(weight, padding, stride, dilation, groups, list(x.shape))
    return lambda x: ops._convolution_pointwise(x, weight, bias, padding, stride, dilation, groups, then, [], "")


def product(module: nn.Linear, x: Tensor, then: str, scale: float = 1.0) -> Step:
    """The product with inputs like `x`, with `then` after it."""
    ops, (weight, bias) = torch.ops.mkldnn, of(module, x.dtype, scale)
    weight = ops._reorder_linear_weight(weight, len(x))
    return lambda x: ops._linear_pointwise(x, weight, bias, then, [], "")


def of(module: nn.Conv2d | nn.Linear, dtype: torch.dtype, scale: float) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, in this dtype."""
    return (module.weight * scale).to(dtype), None if module.bias is None else module.bias.to(dtype)
