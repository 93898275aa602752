"""Memory for policies: cores that stand between an encoder's features and the towers of actor and critic.

A core is a module with `features`, the size of what it puts out, `initial(lanes)`, the state that an episode begins
with, and `core(inputs [T, N, F], state, start [T, N])` -> (outputs [T, N, features], state). A state is a nested tuple
of tensors [N, ...]; what comes back is that after row T, from which the next call goes on. Before row t, lanes with
`start[t]` fall back to the initial state, so that no row sees an episode before its own, and no gradient flows there.
Whole lanes give the numbers that single steps, T = 1, give, up to rounding. Gradients flow through time within one
call, and into the state that it was given: who keeps a state detaches it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as affine
from torch.nn.functional import pad

from proximo.compiler.trace import tracing
from proximo.errors import ConfigError
from proximo.kernels import lstm as kernel
from proximo.models.initial import orthogonal

State = tuple[Any, ...]
Cell = Callable[[Tensor, Callable[[Tensor], Tensor], State], State]


class Core(Protocol):
    """What a policy asks of a memory."""

    features: int

    def initial(self, lanes: int) -> State:
        """The state of lanes whose episodes begin: zeros [lanes, ...], on the module's device."""
        ...

    def __call__(self, inputs: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        """Inputs [T, N, F], the state before them, start [T, N] bool -> outputs [T, N, features], the state after."""
        ...


def lstm_cell(given: Tensor, recurrent: Callable[[Tensor], Tensor], state: State) -> State:
    """One step of long short-term memory with forget gates (Gers et al. 2000); gates as in torch's: i, f, g, o."""
    hidden, memory = state
    write, keep, new, show = (given + recurrent(hidden)).chunk(4, 1)
    memory = keep.sigmoid() * memory + write.sigmoid() * new.tanh()
    return show.sigmoid() * memory.tanh(), memory


def gru_cell(given: Tensor, recurrent: Callable[[Tensor], Tensor], state: State) -> State:
    """One step of a gated recurrent unit (Cho et al. 2014, arXiv:1406.1078), r behind the product, as in cuDNN."""
    (hidden,) = state
    sizes = [2 * hidden.shape[1], hidden.shape[1]]
    (given_gates, given_new), (own_gates, own_new) = given.split(sizes, 1), recurrent(hidden).split(sizes, 1)
    reset, keep = (given_gates + own_gates).sigmoid().chunk(2, 1)
    new = (given_new + reset * own_new).tanh()
    return (new + keep * (hidden - new),)


class Recurrence(nn.Module):
    """A cell, one row after the other. The inputs' product is one for all rows; a step has only what depends on it.

    Of the LSTM, whole lanes are one call of a kernel, where there is one.
    """

    def __init__(self, cell: Cell, gates: int, inputs: int, size: int, bias: bool) -> None:
        super().__init__()
        self.cell = cell
        self.input, self.recurrent = nn.Linear(inputs, gates * size), nn.Linear(size, gates * size, bias)
        for linear in (self.input, self.recurrent):
            orthogonal(linear, 1.0, gates)

    def forward(self, inputs: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        """[T, N, inputs], tensors [N, size], start [T, N] -> [T, N, size], and the tensors after it."""
        keep = (~start).to(inputs.dtype).unsqueeze(-1)
        if self.cell is lstm_cell and kernel.suits(inputs) and not tracing():
            hidden, memory = (tensor * keep[0] for tensor in state)
            weights = self.input.weight, self.input.bias, self.recurrent.weight
            return kernel.lanes(written_out, inputs, hidden, memory, start, weights)
        return row_by_row(self.cell, self.input(inputs), self.recurrent, state, keep)


def row_by_row(
    cell: Cell, given: Tensor, recurrent: Callable[[Tensor], Tensor], state: State, keep: Tensor
) -> tuple[Tensor, State]:
    """From what the inputs give every row [T, N, gates · size], and keep [T, N, 1], zero where an episode begins."""
    outputs = []
    for row, kept in zip(given.unbind(), keep.unbind(), strict=True):
        state = cell(row, recurrent, tuple(tensor * kept for tensor in state))
        outputs.append(state[0])
    return torch.stack(outputs), state


def written_out(
    inputs: Tensor, hidden: Tensor, memory: Tensor, weight: Tensor, bias: Tensor, recurrent: Tensor
) -> tuple[Tensor, ...]:
    """The rows of an LSTM between which no episode begins, as the kernel is given them."""
    given, keep = affine(inputs, weight, bias), inputs.new_ones(len(inputs), 1, 1)
    outputs, state = row_by_row(lstm_cell, given, partial(affine, weight=recurrent), (hidden, memory), keep)
    return outputs, *state


class LSTM(nn.Module):
    """Long short-term memory (Hochreiter & Schmidhuber 1997), `layers` on top of each other.

    Its state is a pair (hidden, memory) for each layer. Matrices begin orthogonal, gate by gate; biases at zero, those
    of the forget gates at 1, so that memories last from the beginning (Jozefowicz et al. 2015).
    """

    def __init__(self, inputs: int, size: int = 64, layers: int = 1) -> None:
        super().__init__()
        check(inputs=inputs, size=size, layers=layers)
        self.features, self.layers = size, nn.ModuleList()
        for width in (inputs, *[size] * (layers - 1)):
            layer = Recurrence(lstm_cell, 4, width, size, bias=False)
            nn.init.ones_(layer.input.bias.detach()[size : 2 * size])
            self.layers.append(layer)

    def initial(self, lanes: int) -> State:
        return tuple((blank(self, lanes, self.features), blank(self, lanes, self.features)) for _ in self.layers)

    def forward(self, inputs: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        return stacked(self.layers, inputs, state, start)


class GRU(nn.Module):
    """Gated recurrent units (Cho et al. 2014), `layers` on top of each other.

    Its state is (hidden,) for each layer. Matrices begin orthogonal, gate by gate, biases at zero.
    """

    def __init__(self, inputs: int, size: int = 64, layers: int = 1) -> None:
        super().__init__()
        check(inputs=inputs, size=size, layers=layers)
        widths = (inputs, *[size] * (layers - 1))
        self.features = size
        self.layers = nn.ModuleList(Recurrence(gru_cell, 3, width, size, bias=True) for width in widths)

    def initial(self, lanes: int) -> State:
        return tuple((blank(self, lanes, self.features),) for _ in self.layers)

    def forward(self, inputs: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        return stacked(self.layers, inputs, state, start)


def stacked(layers: nn.ModuleList, rows: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
    """Recurrences on top of each other: each sees all that the one below put out."""
    after = []
    for layer, before in zip(layers, state, strict=True):
        rows, ended = layer(rows, before, start)
        after.append(ended)
    return rows, tuple(after)


class Block(nn.Module):
    """Attention and a perceptron, each behind a LayerNorm and beside a way around it (Xiong et al. 2020).

    Positions are known by a number for each head and distance, added to the scores (Raffel et al. 2020), so that a row
    looks the same wherever in the window it stands. The numbers begin at zero.
    """

    def __init__(self, size: int, window: int, heads: int, gain: float) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_perceptron = nn.LayerNorm(size), nn.LayerNorm(size)
        self.mix, self.out = linear(size, 3 * size), linear(size, size, gain)
        self.perceptron = nn.Sequential(linear(size, 4 * size), nn.GELU(), linear(4 * size, size, gain))
        self.nearness = nn.Parameter(torch.zeros(heads, window))  # the farthest row first

    def forward(self, x: Tensor, cache: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """[N, T, size], the cache [N, 2, window − 1, heads, dim], visible [N, T, window − 1 + T] -> the first two anew.

        The cache holds keys and values of the rows before. The formula is written out, as torch's fused attention
        cannot be differentiated twice, which natural gradients do.
        """
        lanes, steps, size = x.shape
        mixed = self.mix(self.before_attention(x)).view(lanes, steps, 3, self.heads, -1)
        cache = torch.cat([cache, mixed[:, :, 1:].transpose(1, 2)], 2)
        keys, values = cache.transpose(2, 3).unbind(1)  # [N, heads, window − 1 + T, dim]
        scores = mixed[:, :, 0].transpose(1, 2) @ keys.transpose(2, 3) * (size / self.heads) ** -0.5
        scores = (scores + self.by_distance(steps)).masked_fill(~visible.unsqueeze(1), -math.inf)
        x = x + self.out((scores.softmax(-1) @ values).transpose(1, 2).reshape(x.shape))
        return x + self.perceptron(self.before_perceptron(x)), cache[:, :, steps:]

    def by_distance(self, steps: int) -> Tensor:
        """[heads, T, window − 1 + T]: row t has `nearness` at the columns t … t + window − 1, and −∞ elsewhere.

        Rows one number longer than they should be, cut at the right length: each is moved by one against the last.
        """
        columns = self.nearness.shape[1] - 1 + steps
        rows = pad(self.nearness, (0, steps), value=-math.inf).unsqueeze(1).expand(-1, steps, -1)
        return rows.flatten(1)[:, : steps * columns].unflatten(1, (steps, columns))


class Transformer(nn.Module):
    """A causal transformer (Vaswani et al. 2017) that sees the last `window` rows of an episode, this one among them.

    Every layer has such a window, so what reaches a row may have passed through rows still further back: layers ·
    (window − 1) of them. The state is the keys and values of the last window − 1 rows [N, layers, 2, window − 1, heads,
    size / heads], zero for those that are not of the open episode, and which are, bool [N, window − 1]. Matrices begin
    orthogonal; what L layers add to their inputs is scaled by 1 / √(2 L) (Radford et al. 2019).
    """

    def __init__(self, inputs: int, size: int = 64, layers: int = 1, window: int = 32, heads: int = 4) -> None:
        super().__init__()
        check(inputs=inputs, size=size, layers=layers, heads=heads)
        if size % heads:
            raise ConfigError(f"size of the policy's memory is {size}: it must be a multiple of its heads, {heads}")
        if not 2 <= window <= 65_536:
            raise ConfigError(f"window of the policy's memory is {window}: it must be between 2 and 65,536 rows")
        self.features, self.window, self.heads = size, window, heads
        self.embed, self.norm = linear(inputs, size), nn.LayerNorm(size)
        gain = (2 * layers) ** -0.5
        self.blocks = nn.ModuleList(Block(size, window, heads, gain) for _ in range(layers))

    def initial(self, lanes: int) -> State:
        past, dim = self.window - 1, self.features // self.heads
        return blank(self, lanes, len(self.blocks), 2, past, self.heads, dim), blank(self, lanes, past).bool()

    def forward(self, inputs: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        parts = []  # of a window's length: scores of all rows with all would be T², of which T · window are seen
        for rows, begins in zip(inputs.split(self.window), start.split(self.window), strict=True):
            outputs, state = self.part(rows, state, begins)
            parts.append(outputs)
        # One part alone would not be made contiguous by a compiler, which outputs are everywhere else.
        return torch.cat(parts) if len(parts) > 1 else parts[0].contiguous(), state

    def part(self, inputs: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        """`forward` with the scores of all rows at once."""
        caches, open_episode = state
        episode = start.t().cumsum(1)  # the one that was open is number 0
        seen = torch.cat([torch.where(open_episode, 0, -1), episode], 1)
        visible, after = episode.unsqueeze(2) == seen.unsqueeze(1), []
        x = self.embed(inputs.transpose(0, 1))
        for block, cache in zip(self.blocks, caches.unbind(1), strict=True):
            x, kept = block(x, cache, visible)
            after.append(kept)
        open_episode = seen[:, len(inputs) :] == episode[:, -1:]
        caches = torch.stack(after, 1).masked_fill(~open_episode[:, None, None, :, None, None], 0)
        return self.norm(x).transpose(0, 1), (caches, open_episode)


CORES: dict[str, Callable[..., Core]] = {"lstm": LSTM, "gru": GRU, "transformer": Transformer}


def linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    return orthogonal(nn.Linear(inputs, outputs), gain)


def blank(module: nn.Module, *shape: int) -> Tensor:
    """Zeros of the module's dtype, on its device."""
    return next(module.parameters()).new_zeros(shape)


def check(**sizes: int) -> None:
    """ConfigError for sizes that no core can have."""
    for name, value in sizes.items():
        if not 1 <= value <= 65_536:
            raise ConfigError(f"{name} of the policy's memory is {value}: it must be between 1 and 65,536")
