"""Minibatch stochastic gradient descent: every row once an epoch, in a new order each time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from proximo import ranks
from proximo.batch import Batch
from proximo.errors import ConfigError, NonFiniteError
from proximo.objectives import Diagnostics, Term
from proximo.policy import Policy
from proximo.reduce import with_totals
from proximo.updaters.graph import graph_for
from proximo.updaters.optimizer import Optimizer

Prepare = Callable[[Batch], Batch]
WITNESSES = slice(-2, None)  # in a report, loss and grad_norm: with finite parameters, all was finite


def sgd(
    policy: Policy,
    optimizer: Optimizer,
    objective: Term,
    batch: Batch,
    epochs: int,
    minibatches: int,
    max_grad_norm: float,
    prepare: Prepare = lambda minibatch: minibatch,
    enough: Callable[[], bool] | None = None,
    micro: int | None = None,
) -> Diagnostics:
    """`epochs` passes over the rows of `batch`, each in `minibatches` equal parts drawn without replacement.

    `prepare` transforms each minibatch before it is evaluated (for example `standardize`). `enough` is asked after
    every pass; True ends the update there. The order comes from torch's global generator. `micro` is how many units
    (steps, or lanes) of a minibatch are evaluated at once, for it costs memory; losses and gradients are those of the
    whole minibatch, for Terms that reduce with `proximo.reduce`'s reducers.

    Returns the mean over all minibatches of loss, grad_norm (before clipping to `max_grad_norm`, L2) and what the Terms
    report, as scalar tensors.

    Raises ConfigError where the batch does not divide into `minibatches`; NonFiniteError, with every parameter and the
    optimizer as they were before the call, if a loss, a gradient or a parameter ceases to be finite.
    """
    optimizer.must_hold(policy)
    rows = batch.units()
    must_divide(rows, minibatches)
    step = GradientStep(policy, optimizer, objective, prepare, max_grad_norm, micro)
    graph = graph_for(step, rows, minibatches)
    step, take = (step, partial(step.each, rows)) if graph is None else (graph.step, graph.on(rows))
    before = {name: tensor.clone() for name, tensor in optimizer.state.items()}
    try:
        orders = [torch.randperm(rows.unit_count(), device=rows.mask.device) for _ in range(epochs)]
        passes = []
        for order in orders:
            passes.append(take(order.view(minibatches, -1)))
            if enough and enough():
                break
        reports = torch.cat(passes)
        if not (reports[:, WITNESSES].sum() + optimizer.total(optimizer.state["vector"])).isfinite():
            optimizer.restore(before)  # for a look at the batch with the weights that met it
            report = dict(zip(step.names, reports.unbind(1), strict=True))
            raise NonFiniteError(f"{culprit(policy, batch, report)}: the update was undone")
        if graph is not None:
            graph.audit(rows)
    except BaseException:
        optimizer.restore(before)
        raise
    return dict(zip(step.names, reports.mean(0).unbind(), strict=True))


def must_divide(rows: Batch, minibatches: int) -> None:
    """ConfigError if the units of `rows` do not make as many equal minibatches."""
    if rows.unit_count() % minibatches:
        what = "steps" if rows.mask.dim() == 1 else "sequences"
        raise ConfigError(
            f"minibatches is {minibatches}, into which {rows.unit_count()} {what} do not divide: choose a divisor"
        )


@dataclass(frozen=True)
class GradientStep:
    """One step of the optimizer, in place, on some rows of a flattened batch."""

    policy: Policy
    optimizer: Optimizer
    objective: Term
    prepare: Prepare
    max_grad_norm: float
    micro: int | None = None  # units evaluated at once; None takes the minibatch whole
    names: list[str] = field(default_factory=list, compare=False)  # of what it reports, once it ran

    def __call__(self, rows: Batch, part: Tensor, state: dict[str, Tensor] | None = None) -> Tensor:
        """The report [k], which `names` names; `part` are the rows' indices [m].

        `state` stands for the optimizer's own while a graph is traced.
        """
        if self.micro is not None:
            part = part.sort().values  # lanes of one prompt lie side by side, and are then evaluated together
        pieces = self.pieces(self.prepare(rows.part(part)))
        gradient, report = self.gradient(pieces[0])
        for piece in pieces[1:]:
            more, also = self.gradient(piece)
            gradient.add_(more)
            report = {name: value + also[name] for name, value in report.items()}
        with torch.no_grad():
            gradient, report = self.optimizer.summed(gradient), added(report)
            norm = self.optimizer.norm(gradient)
            gradient.mul_((self.max_grad_norm / (norm + 1e-6)).clamp(max=1))
            self.optimizer.go(gradient, state or self.optimizer.state)
            report = report | {"grad_norm": norm}
            self.names[:] = report
            return torch.stack(list(report.values()))

    def gradient(self, piece: Batch) -> tuple[Tensor, Diagnostics]:
        """The loss's gradient [P], and what the Terms report and the loss."""
        loss, report = self.objective(self.policy.evaluate(piece), piece)
        return self.optimizer.gradient(loss, self.policy), report | {"loss": loss.detach()}

    def pieces(self, minibatch: Batch) -> list[Batch]:
        """What this rank evaluates at once, with the denominators of the whole minibatch: all losses add up."""
        if self.micro is None and ranks.size() == 1:
            return [minibatch]
        whole, (index, own) = with_totals(minibatch), ranks.share(minibatch.unit_count(), minibatch.mask.device)
        mine = whole.part(index)
        of_units = own.view(-1, *[1] * (mask.dim() - 2)) if (mask := mine.mask).dim() > 1 else own
        mine, units = mine.replace(mask=mask & of_units), torch.arange(len(index), device=mask.device)
        return [mine.part(some) for some in units.split(self.micro or len(index))]

    def each(self, rows: Batch, parts: Tensor) -> Tensor:
        """One after the other: parts [n, m], reports [n, k]."""
        return torch.stack([self(rows, part) for part in parts])

    def loss(self, rows: Batch, part: Tensor) -> tuple[Tensor, Diagnostics]:
        minibatch = self.prepare(rows.part(part))
        return self.objective(self.policy.evaluate(minibatch), minibatch)


def added(report: Diagnostics) -> Diagnostics:
    """Reports, of which every rank has a part, as sums over ranks."""
    if ranks.size() == 1:
        return report
    return dict(zip(report, ranks.summed(torch.stack(list(report.values()))).unbind(), strict=True))


@torch.no_grad()
def culprit(policy: Policy, batch: Batch, report: dict[str, Tensor]) -> str:
    """Where a non-finite number first shows: the column, the step and the lane; else the loss or its gradient."""
    now = policy.evaluate(batch)
    for name, column in (vars(batch) | {"new logp": now.logp, "new value": now.value}).items():
        if not isinstance(column, Tensor):
            continue
        bad = ~column.isfinite()
        if column.is_floating_point() and bad.any():
            step, lane, *_ = bad.nonzero()[0].tolist()
            value = column[tuple(bad.nonzero()[0])].item()
            return f"{name} is {value} at step {step} of the rollout, lane {lane}"
    bad = ~(report["loss"] + report["grad_norm"]).isfinite()
    if not bad.any():
        return "a weight overflowed (lower the learning rate)"
    loss = report["loss"][bad][0]
    what = f"the loss is {loss.item()}" if not loss.isfinite() else "the gradient is not finite"
    return f"{what} although every column of the batch is finite (a number too large for float32?)"
