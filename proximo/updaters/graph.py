"""Gradient steps as one compiled graph: minibatch, loss, gradient, clipping and optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from proximo import ranks
from proximo.batch import Batch
from proximo.compiler import compiling_is_on, fuse, lent
from proximo.errors import ConfigError, StaleGraph
from proximo.updaters.adam import Adam

MOST_GRAPHS = 8  # of one optimizer: more means that a new objective is made for every update
UNROLLED = 4  # gradient steps in one call, where a pass has so many
STALE = (
    "the compiled update no longer does what its Terms say: a number in a Term, the policy or the optimizer changed "
    "after it was compiled; put such numbers into the batch or a buffer, or use --compile off"
)
Kept = TypeVar("Kept")
TOLERANCE = 0.1  # of the way that parameters go in a call; what float32 rounding does to it is far less


def graph_for(step: Any, rows: Batch, parts: int) -> StepGraph | None:
    """The graph of a `GradientStep` on each of `parts` parts of rows like these; None where nothing is compiled.

    There is one for each objective and shape of batch; none where processes add up their gradients.
    """
    if not compiling_is_on() or ranks.size() > 1:
        return None
    key = (step, parts, tuple(vars(rows)), tuple((leaf.shape, leaf.dtype) for leaf in rows.leaves()))
    graph = kept(step.optimizer, key, lambda: StepGraph(step, rows, parts))
    return graph if graph.graph is not None else None


def kept(optimizer: Adam, key: Any, make: Callable[[], Kept]) -> Kept:
    """What was compiled under this key, now or before: kept with the optimizer. ConfigError for too many of them."""
    if key not in optimizer.graphs:
        if len(optimizer.graphs) == MOST_GRAPHS:
            raise ConfigError(
                f"{MOST_GRAPHS} different objectives or shapes of batch were compiled for one optimizer: make an "
                "objective once, with numbers that change in the batch or a buffer, or use --compile off"
            )
        optimizer.graphs[key] = make()
    return optimizer.graphs[key]


class StepGraph:
    """Some `GradientStep`s after each other, compiled for one shape of batch."""

    def __init__(self, step: Any, rows: Batch, parts: int) -> None:
        policy, optimizer = step.policy, step.optimizer
        fixed = {name: x for name, x in policy.named_parameters() if name not in optimizer.shapes}
        fixed |= dict(policy.named_buffers())
        outline = rows.map(lambda x: x.new_empty(0))  # the columns, for no graph should keep a collection
        self.step, self.updates, self.due = step, 0, 1
        self.live = [*optimizer.state.values(), *(tensor.detach() for tensor in fixed.values())]

        def gradient_steps(parts: Tensor, *tensors: Tensor) -> tuple[Tensor]:
            following = iter(tensors)
            state = {name: next(following) for name in optimizer.state}
            others = {name: next(following) for name in fixed}
            batch, reports = outline.with_leaves(following), []
            for part in parts.unbind():
                parameters = {name: x.detach().requires_grad_() for name, x in optimizer.parts(state["vector"]).items()}
                reports.append(lent(policy, parameters | others, step, batch, part, state))
            return (torch.stack(reports),)

        self.example = torch.arange(rows.unit_count(), device=rows.mask.device).view(parts, -1)
        long = rows.mask.dim() > 1  # a step goes through a sequence, and is long to compile
        self.example = self.example[: UNROLLED if parts % UNROLLED == 0 and not long else 1]
        self.graph = fuse(gradient_steps, [self.example, *self.live, *rows.leaves()], range(1, 1 + len(self.live)))

    def on(self, rows: Batch) -> Callable[[Tensor], Tensor]:
        """The steps on parts [n, m] of these rows: reports [n, k]."""
        graph: Any = self.graph
        tensors = [*self.live, *rows.leaves()]
        return lambda parts: torch.cat([graph(some, *tensors)[0] for some in parts.split(len(self.example))])

    def audit(self, rows: Batch) -> None:
        """StaleGraph if the graph no longer does what the uncompiled steps do; nothing is changed.

        Called at the end of an update, when ratios differ from one. It looks at updates 1, 16, 256, …, for next to
        nothing, and cannot look at steps that draw random numbers.
        """
        self.updates += 1
        if self.updates < self.due:
            return
        self.due *= 16
        vector, before = self.step.optimizer.state["vector"], [tensor.clone() for tensor in self.live]
        ends = []
        with torch.random.fork_rng():
            losses = [self.step.loss(rows, self.example[0])[0].item() for _ in range(2)]
            for steps in (self.on(rows), lambda parts: self.step.each(rows, parts)):
                try:
                    steps(self.example)
                    ends.append(vector.clone())
                finally:
                    with torch.no_grad():
                        for tensor, old in zip(self.live, before, strict=True):
                            tensor.copy_(old)
        ours, theirs = ends
        apart, way = (ours - theirs).norm(), (theirs - vector).norm()
        if losses[0] == losses[1] and not apart <= TOLERANCE * way:
            raise StaleGraph(STALE)
