"""Minibatch stochastic gradient descent: every row once an epoch, in a new order each time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from proximo.batch import Batch
from proximo.errors import NonFiniteError
from proximo.objectives import Diagnostics, Term
from proximo.policy import Policy


def sgd(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    objective: Term,
    batch: Batch,
    epochs: int,
    minibatches: int,
    max_grad_norm: float,
    prepare: Callable[[Batch], Batch] = lambda minibatch: minibatch,
) -> Diagnostics:
    """`epochs` passes over the rows of `batch`, each in `minibatches` equal parts drawn without replacement.

    `prepare` transforms each minibatch before it is evaluated (for example `standardize`). The order comes from
    torch's global generator. Returns the mean over all minibatches of loss, grad_norm (before clipping to
    `max_grad_norm`, L2) and what the Terms report, as scalar tensors.

    Raises NonFiniteError, with every parameter and the optimizer as they were before the call, if a loss, a gradient
    or a parameter ceases to be finite.
    """
    parameters = list(policy.parameters())
    live = [*parameters, *(tensor for state in optimizer.state.values() for tensor in state.values())]
    before = [tensor.detach().clone() for tensor in live]
    rows = batch.flatten()
    seen: list[Diagnostics] = []
    try:
        for _ in range(epochs):
            shuffled = rows.steps(torch.randperm(rows.mask.numel(), device=rows.mask.device))
            for part in _split(shuffled, minibatches):
                minibatch = prepare(part)
                loss, report = objective(policy.evaluate(minibatch), minibatch)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
                if not torch.isfinite(loss.detach() + norm):
                    raise NonFiniteError(f"{_culprit(policy, batch, loss)}: the update was undone")
                optimizer.step()
                seen.append(report | {"loss": loss.detach(), "grad_norm": norm})
        if not all(bool(p.detach().isfinite().all()) for p in parameters):
            raise NonFiniteError("a weight overflowed: the update was undone; lower the learning rate")
    except BaseException:
        with torch.no_grad():
            for tensor, old in zip(live, before, strict=True):
                tensor.copy_(old)
        raise
    return {name: torch.stack([report[name] for report in seen]).mean() for name in seen[0]}


def _split(rows: Batch, parts: int) -> list[Batch]:
    size, rest = divmod(rows.mask.numel(), parts)
    assert rest == 0, "the configuration promised that the minibatches divide the batch"
    return [rows.map(lambda x, i=i: x[i * size : (i + 1) * size]) for i in range(parts)]


@torch.no_grad()
def _culprit(policy: Policy, batch: Batch, loss: Tensor) -> str:
    """Where a non-finite number first shows: the column, the step and the lane; else the loss or its gradient."""
    now = policy.evaluate(batch)
    columns = {name: column for name, column in vars(batch).items() if isinstance(column, Tensor)}
    for name, column in (columns | {"new logp": now.logp, "new value": now.value}).items():
        bad = ~column.isfinite()
        if column.is_floating_point() and bad.any():
            step, lane, *_ = bad.nonzero()[0].tolist()
            value = column[tuple(bad.nonzero()[0])].item()
            return f"{name} is {value} at step {step} of the rollout, lane {lane}"
    what = f"the loss is {loss.item()}" if not loss.isfinite() else "the gradient is not finite"
    return f"{what} although every column of the batch is finite (a number too large for float32?)"
