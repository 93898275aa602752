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
UNROLLED = 4  # gradient steps in one call, where a pass has so many
TOLERANCE = 1e-3  # of the loss; what float32 rounding does to one is far less


def compiled(step: Any, rows: Batch, parts: int) -> Callable[[Tensor], Tensor] | None:
    """A `GradientStep` on each of `parts` parts [parts, m] of these rows; None where nothing is compiled.

    Graphs are kept with the optimizer: one for each objective and shape of batch.
    """
    if not compiling_is_on():
        return None
    graphs = step.optimizer.graphs
    key = (step, parts, tuple(vars(rows)), rows.mask.shape)
    if key not in graphs and len(graphs) < MOST_GRAPHS:
        graphs[key] = StepGraph(step, rows, parts)
        if len(graphs) == MOST_GRAPHS:
            log.warning("%d objectives or shapes of batch were compiled; more will run uncompiled", MOST_GRAPHS)
    return graphs[key].on(rows) if key in graphs else None


class StepGraph:
    """Some `GradientStep`s after each other, compiled for one shape of batch."""

    def __init__(self, step: Any, rows: Batch, parts: int) -> None:
        policy, optimizer = step.policy, step.optimizer
        buffers = dict(policy.named_buffers())
        self.step, self.updates = step, 0
        self.live = [*optimizer.state.values(), *buffers.values()]

        def gradient_steps(parts: Tensor, *tensors: Tensor) -> tuple[Tensor]:
            following = iter(tensors)
            state = {name: next(following) for name in optimizer.state}
            lent_buffers = {name: next(following) for name in buffers}
            batch, reports = rows.with_leaves(following), []
            for part in parts.unbind():
                parameters = {name: x.detach().requires_grad_() for name, x in optimizer.parts(state["vector"]).items()}
                reports.append(lent(policy, parameters | lent_buffers, step, batch, part, state))
            return (torch.stack(reports),)

        self.example = torch.arange(rows.mask.numel(), device=rows.mask.device).view(parts, -1)
        self.example = self.example[: UNROLLED if parts % UNROLLED == 0 else 1]
        self.graph = fuse(gradient_steps, [self.example, *self.live, *rows.leaves()], range(1, 1 + len(self.live)))

    def on(self, rows: Batch) -> Callable[[Tensor], Tensor] | None:
        """The steps on parts of these rows; at updates 1, 2, 4, 8, … they are first checked, for next to nothing."""
        if self.graph is None:
            return None
        graph, tensors, size = self.graph, [*self.live, *rows.leaves()], len(self.example)
        self.updates += 1
        if self.updates & (self.updates - 1) == 0:
            self.check(rows, lambda parts: graph(parts, *tensors)[0])
        return lambda parts: torch.cat([graph(some, *tensors)[0] for some in parts.split(size)])

    def check(self, rows: Batch, call: Callable[[Tensor], Tensor]) -> None:
        """StaleGraph if the loss of the first rows is not what the uncompiled Terms say; nothing is changed."""
        before = [tensor.clone() for tensor in self.live]
        with torch.random.fork_rng(), torch.no_grad():
            said = call(self.example)[0, self.step.optimizer.reported.index("loss")].item()
            for tensor, old in zip(self.live, before, strict=True):
                tensor.copy_(old)
            wanted = self.step.loss(rows, self.example[0])[0].item()
        if abs(said - wanted) > TOLERANCE * (1 + abs(wanted)):
            raise StaleGraph(
                f"the compiled loss is {said:.6g}, the uncompiled one {wanted:.6g}: a number in a Term or the policy "
                "changed after it was compiled; put such numbers into the batch or a buffer, or use --compile off"
            )
