"""Minibatch stochastic gradient descent: every row once an epoch, in a new order each time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from proximo.batch import Batch
from proximo.errors import NonFiniteError
from proximo.objectives import Diagnostics, Term
from proximo.policy import Policy
from proximo.updaters.adam import Adam
from proximo.updaters.graph import compiled

Prepare = Callable[[Batch], Batch]


def sgd(
    policy: Policy,
    optimizer: Adam,
    objective: Term,
    batch: Batch,
    epochs: int,
    minibatches: int,
    max_grad_norm: float,
    prepare: Prepare = lambda minibatch: minibatch,
) -> Diagnostics:
    """`epochs` passes over the rows of `batch`, each in `minibatches` equal parts drawn without replacement.

    `prepare` transforms each minibatch before it is evaluated (for example `standardize`). The order comes from
    torch's global generator. Returns the mean over all minibatches of loss, grad_norm (before clipping to
    `max_grad_norm`, L2) and what the Terms report, as scalar tensors.

    Raises NonFiniteError, with every parameter and the optimizer as they were before the call, if a loss, a gradient
    or a parameter ceases to be finite.
    """
    rows = batch.flatten()
    step = GradientStep(policy, optimizer, objective, prepare, max_grad_norm)
    take = compiled(step, rows, minibatches) or partial(step.each, rows)
    before = {name: tensor.clone() for name, tensor in optimizer.state.items()}
    try:
        orders = [torch.randperm(rows.mask.numel(), device=rows.mask.device) for _ in range(epochs)]
        reports = torch.cat([take(order.view(minibatches, -1)) for order in orders])
        if not (reports.sum() + optimizer.state["vector"].sum()).isfinite():  # the sum is a witness of each of them
            optimizer.restore(before)
            raise NonFiniteError(f"{_culprit(policy, batch, reports, optimizer.reported)}: the update was undone")
    except BaseException:
        optimizer.restore(before)
        raise
    return dict(zip(optimizer.reported, reports.mean(0).unbind(), strict=True))


@dataclass(frozen=True)
class GradientStep:
    """One step of the optimizer, in place, on some rows of a flattened batch."""

    policy: Policy
    optimizer: Adam
    objective: Term
    prepare: Prepare
    max_grad_norm: float

    def __call__(self, rows: Batch, part: Tensor, state: dict[str, Tensor] | None = None) -> Tensor:
        """The report [k], named by `optimizer.reported`; `part` are the rows' indices [m].

        `state` stands for the optimizer's own while a graph is traced.
        """
        loss, report = self.loss(rows, part)
        gradients = torch.autograd.grad(loss, list(self.policy.parameters()), materialize_grads=True)
        with torch.no_grad():
            gradient = torch.cat([each.reshape(-1) for each in gradients])
            norm = gradient.square().sum().sqrt()
            clipped = gradient * (self.max_grad_norm / (norm + 1e-6)).clamp(max=1)
            self.optimizer.descend(clipped, state or self.optimizer.state)
            report = report | {"loss": loss.detach(), "grad_norm": norm}
            self.optimizer.reported = list(report)
            return torch.stack(list(report.values()))

    def each(self, rows: Batch, parts: Tensor) -> Tensor:
        """One after the other: parts [n, m], reports [n, k]."""
        return torch.stack([self(rows, part) for part in parts])

    def loss(self, rows: Batch, part: Tensor) -> tuple[Tensor, Diagnostics]:
        minibatch = self.prepare(rows.steps(part))
        return self.objective(self.policy.evaluate(minibatch), minibatch)


@torch.no_grad()
def _culprit(policy: Policy, batch: Batch, reports: Tensor, names: list[str]) -> str:
    """Where a non-finite number first shows: the column, the step and the lane; else the loss or its gradient."""
    now = policy.evaluate(batch)
    columns = {name: column for name, column in vars(batch).items() if isinstance(column, Tensor)}
    for name, column in (columns | {"new logp": now.logp, "new value": now.value}).items():
        bad = ~column.isfinite()
        if column.is_floating_point() and bad.any():
            step, lane, *_ = bad.nonzero()[0].tolist()
            value = column[tuple(bad.nonzero()[0])].item()
            return f"{name} is {value} at step {step} of the rollout, lane {lane}"
    losses, norms = (reports[:, names.index(name)] for name in ("loss", "grad_norm"))
    bad = ~(losses + norms).isfinite()
    if not bad.any():
        return "a weight overflowed (lower the learning rate)"
    loss = losses[bad][0]
    what = f"the loss is {loss.item()}" if not loss.isfinite() else "the gradient is not finite"
    return f"{what} although every column of the batch is finite (a number too large for float32?)"
