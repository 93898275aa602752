"""A gradient step as one compiled graph: minibatch, loss, gradient, clipping and optimizer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from proximo.batch import Batch
from proximo.compiler import compiling_is_on, fuse, lent
from proximo.errors import StaleGraph

log = logging.getLogger("proximo")
MOST_GRAPHS = 8  # of one optimizer: more means that a new objective is made for every update
TOLERANCE = 1e-3  # of the loss; what float32 rounding does to one is far less


def compiled(step: Any, rows: Batch, size: int) -> Callable[[Tensor], Tensor] | None:
    """A `GradientStep` on parts of `size` of these rows, as a function of the part; None where nothing is compiled.

    Graphs are kept with the optimizer: one for each objective and shape of batch.
    """
    if not compiling_is_on():
        return None
    graphs = step.optimizer.graphs
    key = (step, size, tuple(vars(rows)), tuple((tuple(leaf.shape), leaf.dtype) for leaf in rows.leaves()))
    if key not in graphs and len(graphs) < MOST_GRAPHS:
        graphs[key] = StepGraph(step, rows, size)
        if len(graphs) == MOST_GRAPHS:
            log.warning("%d objectives or shapes of batch were compiled; more will run uncompiled", MOST_GRAPHS)
    return graphs[key].on(rows) if key in graphs else None


class StepGraph:
    """A `GradientStep`, compiled for one shape of batch."""

    def __init__(self, step: Any, rows: Batch, size: int) -> None:
        policy, optimizer = step.policy, step.optimizer
        buffers = dict(policy.named_buffers())
        self.step, self.size, self.updates = step, size, 0
        self.live = [*optimizer.state.values(), *buffers.values()]

        def gradient_step(part: Tensor, *tensors: Tensor) -> tuple[Tensor]:
            following = iter(tensors)
            state = {name: next(following) for name in optimizer.state}
            lent_buffers = {name: next(following) for name in buffers}
            parameters = {name: x.detach().requires_grad_() for name, x in optimizer.parts(state["vector"]).items()}
            return (lent(policy, parameters | lent_buffers, step, rows.with_leaves(following), part, state),)

        part = torch.arange(size, device=rows.mask.device)
        self.graph = fuse(gradient_step, [part, *self.live, *rows.leaves()], range(1, 1 + len(self.live)))

    def on(self, rows: Batch) -> Callable[[Tensor], Tensor] | None:
        """The step on parts of these rows; at updates 1, 2, 4, 8, … it is first checked, for next to nothing."""
        if self.graph is None:
            return None
        graph, tensors = self.graph, [*self.live, *rows.leaves()]
        self.updates += 1
        if self.updates & (self.updates - 1) == 0:
            self.check(rows, lambda part: graph(part, *tensors)[0])
        return lambda part: graph(part, *tensors)[0]

    def check(self, rows: Batch, call: Callable[[Tensor], Tensor]) -> None:
        """StaleGraph if the loss of the first rows is not what the uncompiled Terms say; nothing is changed."""
        part = torch.arange(self.size, device=rows.mask.device)
        before = [tensor.clone() for tensor in self.live]
        with torch.random.fork_rng(), torch.no_grad():
            said = call(part)[self.step.optimizer.reported.index("loss")].item()
            for tensor, old in zip(self.live, before, strict=True):
                tensor.copy_(old)
            wanted = self.step.loss(rows, part)[0].item()
        if abs(said - wanted) > TOLERANCE * (1 + abs(wanted)):
            raise StaleGraph(
                f"the compiled loss is {said:.6g}, the uncompiled one {wanted:.6g}: a number in a Term or the policy "
                "changed after it was compiled; put such numbers into the batch or a buffer, or use --compile off"
            )
