"""Long short-term memory over whole lanes in one call of oneDNN, whatever episodes begin inside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Formula = Callable[..., tuple[Tensor, ...]]
SHORTEST = 4  # rows from which on it is faster than the formula row by row
SHUT = 1e6  # what closes a gate to the last bit, whatever else is added to it


def suits(rows: Tensor) -> bool:
    """Whether oneDNN computes for rows like these, [T, N, F], and faster."""
    known = rows.dtype == torch.float32 and rows.device.type == "cpu" and torch.backends.mkldnn.is_available()
    return known and len(rows) >= SHORTEST


def lanes(
    formula: Formula, inputs: Tensor, hidden: Tensor, memory: Tensor, start: Tensor, weights: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Inputs [T, N, F], hidden and memory before them [N, H], start [T, N] bool -> outputs [T, N, H], both after them.

    `weights` are those of the inputs [4H, F], their bias [4H], and those of what was put out before [4H, H], of the
    gates i, f, g, o. Every episode becomes a lane of its own, and all are as long as the longest: where one is over,
    one more input shuts its gates, so that its memory stays as it is.
    """
    if not start[1:].any():
        outputs, hidden, memory = rows(formula, inputs, hidden, memory, *weights)
        return outputs, (hidden, memory)
    steps, count, begins = len(inputs), inputs.shape[1], start.t().clone()
    begins[:, 0] = True
    episode = begins.flatten().cumsum(0) - 1  # of every row, lane after lane
    first, last = episode[::steps], episode[steps - 1 :: steps]
    row = torch.arange(steps * count, device=start.device)
    row = row - row[begins.flatten()][episode]  # of its episode
    longest, episodes = int(row.max()) + 1, int(last[-1]) + 1
    place = row * episodes + episode
    over = inputs.new_ones(longest * episodes, 1).index_fill(0, place, 0)
    apart = inputs.new_zeros(longest * episodes, inputs.shape[2]).index_copy(
        0, place, inputs.transpose(0, 1).flatten(0, 1)
    )
    weight, bias, recurrent = weights
    gates = bias.new_tensor([-SHUT, SHUT, 0.0, 0.0]).repeat_interleave(len(bias) // 4)
    outputs, _, memories = rows(
        formula,
        torch.cat([apart, over], 1).view(longest, episodes, -1),
        *(hidden.new_zeros(episodes, hidden.shape[1]).index_copy(0, first, x) for x in (hidden, memory)),
        torch.cat([weight, gates.unsqueeze(1)], 1),
        bias,
        recurrent,
    )
    outputs = outputs.flatten(0, 1)[place.view(count, steps).t().contiguous()]
    return outputs, (outputs[-1], memories[last])


def rows(formula: Formula, *given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`lanes` where no episode begins. `formula` is the same in plain operations.

    What oneDNN does can be differentiated once: a derivative that is to be differentiated again is the formula's.
    """
    return Rows.apply(formula, *given) if torch.is_grad_enabled() else layer(*given)


def layer(inputs: Tensor, hidden: Tensor, memory: Tensor, weight: Tensor, bias: Tensor, recurrent: Tensor) -> Any:
    weights = [weight, recurrent, bias, torch.zeros_like(bias)]
    state, training = (hidden.unsqueeze(0), memory.unsqueeze(0)), torch.is_grad_enabled()
    outputs, hidden, memory = torch.lstm(inputs, state, weights, True, 1, 0.0, training, False, False)
    return outputs, hidden[0], memory[0]


class Rows(torch.autograd.Function):
    """`layer`, differentiated by oneDNN, or by the formula where the derivative is to be differentiated again."""

    @staticmethod
    def forward(ctx: Any, formula: Formula, *given: Tensor) -> tuple[Tensor, ...]:
        ctx.formula, ctx.held = formula, [x.detach().requires_grad_() for x in given]
        with torch.enable_grad():
            ctx.made = layer(*ctx.held)
        ctx.save_for_backward(*given)
        return tuple(x.detach() for x in ctx.made)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return None, *torch.autograd.grad(ctx.made, ctx.held, slopes, retain_graph=True)
        # Names of their own: what was given may be made of one another, which is not asked here.
        given = [x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in ctx.saved_tensors]
        return None, *torch.autograd.grad(ctx.formula(*given), given, slopes, create_graph=True)
