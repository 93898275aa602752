"""Natural gradient steps: conjugate gradient on Fisher-vector products, and a line search that keeps to a bound.

    step = √(2δ / xᵀF x) x,   F x = −∇loss

goes down the loss in the steepest direction where lengths are measured by the KL divergence of policies and not by
parameters. To second order, and without damping, it moves the policy by a mean KL of δ; with it by less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

from proximo.batch import Batch, leaves_of, tree_map, with_leaves
from proximo.compiler import compiling_is_on, fused, lent
from proximo.errors import NonFiniteError, StaleGraph
from proximo.objectives import Diagnostics, Term, kl_old
from proximo.policy import Distribution, Policy
from proximo.reduce import masked_mean
from proximo.updaters.adam import Adam
from proximo.updaters.graph import STALE, TOLERANCE, kept
from proximo.updaters.sgd import culprit

Product = Callable[[Tensor], Tensor]


def conjugate_gradient(product: Product, b: Tensor, iterations: int, tolerance: float = 1e-5) -> Tensor:
    """x [P] with A x ≈ b, for a symmetric positive definite A known by its product(v) = A v alone.

    Hestenes & Stiefel 1952, from x = 0. Once the residual is `tolerance` of b (L2), or no curvature is left, x stays
    as it is: the work is the same whatever the numbers are, so that nothing waits for them.
    """
    x, residual, direction = torch.zeros_like(b), b, b
    square = b @ b
    enough, goes_on = tolerance**2 * square, torch.ones_like(square, dtype=torch.bool)
    for _ in range(iterations):
        along = product(direction)
        curvature = direction @ along
        goes_on = goes_on & (square > enough) & ~(curvature <= 0)  # NaN goes on, and so is seen in the end
        length = torch.where(goes_on, square / curvature, 0)
        x, residual = x + length * direction, residual - length * along
        before, square = square, residual @ residual
        direction = residual + torch.where(goes_on, square / before, 0) * direction
    return x


def fisher_vector_product(distribution: Distribution, mask: Tensor, parameters: Sequence[Tensor]) -> Product:
    """v [P] -> F v [P], F the mean Fisher matrix of live rows' distributions, made from these parameters.

    F is the Hessian of the mean exact KL(π_old ‖ π) at π = π_old, which is also its mixed derivative:

        F v = −∂/∂θ (∂/∂θ_old KL(π_old ‖ π) · v) = Jᵀ M J v,   M = −∂²KL/∂d_old ∂d

    with d the numbers that the distribution is made of and J = ∂d/∂θ. So nothing is differentiated twice but the
    KL itself; J v is the derivative of Jᵀu, which is linear in u (Pearlmutter's trick, by reverse mode alone).
    """
    made = leaves_of(distribution)
    old, new, u = ([x.detach().clone().requires_grad_() for x in made] for _ in range(3))
    kl = masked_mean(with_leaves(distribution, old).kl(with_leaves(distribution, new)), mask)
    slope = torch.autograd.grad(kl, old, create_graph=True)
    pulled = torch.autograd.grad(made, parameters, u, create_graph=True, allow_unused=True)
    used = [i for i, x in enumerate(pulled) if x is not None]  # a value tower is not
    pulled, ours, sizes = [pulled[i] for i in used], [parameters[i] for i in used], [p.numel() for p in parameters]

    def product(v: Tensor) -> Tensor:
        parts = [part.view_as(p) for part, p in zip(v.split(sizes), parameters, strict=True)]
        pushed = torch.autograd.grad(pulled, u, [parts[i] for i in used], retain_graph=True, materialize_grads=True)
        bent = torch.autograd.grad(slope, new, pushed, retain_graph=True, materialize_grads=True)
        back = torch.autograd.grad(made, ours, bent, retain_graph=True)
        found = dict(zip(used, back, strict=True))
        return -torch.cat([found[i].reshape(-1) if i in found else v.new_zeros(n) for i, n in enumerate(sizes)])

    return product


@torch.no_grad()
def natural_step(
    policy: Policy,
    optimizer: Adam,
    objective: Term,
    batch: Batch,
    delta: float,
    iterations: int = 10,
    damping: float = 0.1,
    fraction: float = 1.0,
    halvings: int | None = None,
) -> Diagnostics:
    """One step of the policy down `objective`, a mean KL of `delta` at most (to second order); the value stays.

    `iterations` of conjugate gradient solve (F + damping) x = −∇loss, with F from this `fraction` of the rows, drawn
    by torch's global generator; by F + damping `delta` is measured too. With `halvings`, the step is halved, so many
    times at most, until the exact KL over all live rows is at most `delta` and the loss is less than it was; if it
    never is, the parameters stay, bit for bit. With None the whole step is taken. Of the optimizer the vector of
    parameters is used, not its moments.

    Returns loss, kl_old (exact) and what the Terms report after the step, grad_norm before it, and step_size, the
    share of the step that was taken. Raises NonFiniteError, with every parameter as it was, for NaN or infinity.
    """
    optimizer.must_hold(policy)
    rows = batch.units()
    count = rows.mask.shape[-1]
    few = max(round(fraction * count), 1)
    sample = rows if few == count else rows.part(torch.randperm(count, device=rows.mask.device)[:few])
    surface = surface_for(policy, optimizer, objective, rows, few)
    before = surface.vector.clone()
    try:
        gradient, old = surface.slope(rows)
        judged = rows.replace(old=old)
        start, fisher = surface.look(judged), surface.fisher(sample)
        step = _step(lambda v: fisher(v) + damping * v, gradient, iterations, delta)
        witness = gradient.norm() + step.sum()
        if not (start["loss"] + witness).isfinite():
            found = {"loss": start["loss"].view(1), "grad_norm": witness.view(1)}
            raise NonFiniteError(f"{culprit(policy, batch, found)}: the update was undone")
        end, size = _taken(surface, judged, start, step, delta, halvings)
        if not (end["loss"] + end["kl_old"] + surface.vector.sum()).isfinite():
            raise NonFiniteError("the step leads to numbers that are not finite: it was undone; lower delta")
        surface.audit(rows)
    except BaseException:
        surface.vector.copy_(before)
        raise
    return end | {"grad_norm": gradient.norm(), "step_size": torch.tensor(size)}


def _step(product: Product, gradient: Tensor, iterations: int, delta: float) -> Tensor:
    """√(2δ / xᵀA x) x with A x ≈ −gradient; zero where that is."""
    norm = gradient.norm().clamp(min=torch.finfo(gradient.dtype).tiny)  # drops out, but it may be very long
    x = conjugate_gradient(product, -gradient / norm, iterations)
    square = x @ product(x)
    return x * torch.where(square <= 0, 0, (2 * delta / square).sqrt())


def _taken(
    surface: Surface, rows: Batch, start: Diagnostics, step: Tensor, delta: float, halvings: int | None
) -> tuple[Diagnostics, float]:
    """Go the step, or what part of it the search accepts; what is seen there, and the part: 0 if none is."""
    before = surface.vector.clone()
    for size in [0.5**k for k in range((halvings or 0) + 1)]:
        torch.add(before, step, alpha=size, out=surface.vector)
        seen = surface.look(rows)
        better = (seen["loss"] < start["loss"]) & seen["loss"].isfinite()
        if halvings is None or better & (seen["kl_old"] <= delta):
            return seen, size
    surface.vector.copy_(before)
    return start, 0.0


def surface_for(policy: Policy, optimizer: Adam, objective: Term, rows: Batch, few: int) -> Surface:
    """The surface of this objective for batches like these: kept with the optimizer where it is compiled."""
    make = partial(Surface, policy, optimizer, objective)
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in rows.leaves())
    return kept(optimizer, (objective, tuple(vars(rows)), shapes, few), make) if compiling_is_on() else make()


class Surface:
    """An objective over the space of a policy's parameters: its height, its slope, and the curvature of the KL there.

    Each is one call, compiled where compiling is on.
    """

    def __init__(self, policy: Policy, optimizer: Adam, objective: Term) -> None:
        self.policy, self.optimizer, self.objective = policy, optimizer, objective
        self.vector, self.compiled = optimizer.state["vector"], compiling_is_on()
        self.names: list[str] = []  # of what `_height` reports, once it ran
        self.kind: Any = None  # of distribution
        self.calls: dict[str, Callable[..., tuple[Tensor, ...]]] = {}
        self.updates, self.due = 0, 1

    def look(self, rows: Batch) -> Diagnostics:
        """loss, kl_old and what the Terms report, where the policy is now."""
        (report,) = self._call(self._height, rows)
        return dict(zip(self.names, report.unbind(), strict=True))

    def slope(self, rows: Batch) -> tuple[Tensor, Distribution]:
        """The loss's gradient [P], and the distributions, where the policy is now."""
        gradient, *made = self._call(self._slope, rows, self.vector.clone())
        return gradient, with_leaves(self.kind, made)

    def fisher(self, rows: Batch) -> Product:
        """v [P] -> F v [P], where the policy is now."""
        if not self.compiled:
            return self._at(self.vector, self._product, rows)
        here = self.vector.clone()
        return lambda v: self._call(self._curvature, rows, here, v)[0]

    def audit(self, rows: Batch) -> None:
        """StaleGraph if the compiled slope is no longer that of the Terms; it looks at updates 1, 16, 256, …"""
        self.updates += 1
        if not self.compiled or self.updates < self.due:
            return
        self.due *= 16
        theirs, again = (self._slope(rows, self.vector)[0] for _ in range(2))
        apart = (self.slope(rows)[0] - theirs).norm()
        if torch.equal(theirs, again) and not apart <= TOLERANCE * theirs.norm():
            raise StaleGraph(STALE)

    def _call(self, function: Callable[..., tuple[Tensor, ...]], rows: Batch, *tensors: Tensor) -> tuple[Tensor, ...]:
        name, count = function.__name__, len(tensors)
        if name not in self.calls:
            outline = rows.map(lambda x: x.new_empty(0))  # the columns, for nothing should keep a collection

            @wraps(function)
            def flat(*given: Tensor) -> tuple[Tensor, ...]:
                return function(outline.with_leaves(given[count:]), *given[:count])

            self.calls[name] = fused(self.policy, flat, [*tensors, *rows.leaves()])
        return self.calls[name](*tensors, *rows.leaves())

    def _height(self, rows: Batch) -> tuple[Tensor]:
        evaluation = self.policy.evaluate(rows)
        loss, seen = self.objective(evaluation, rows)
        report = seen | {"loss": loss, "kl_old": kl_old()(evaluation, rows)[0]}
        self.names[:] = report
        return (torch.stack(list(report.values())),)

    def _slope(self, rows: Batch, vector: Tensor) -> tuple[Tensor, ...]:
        return self._at(vector, self._gradient, rows)

    def _curvature(self, rows: Batch, vector: Tensor, v: Tensor) -> tuple[Tensor]:
        return self._at(vector, lambda few: (self._product(few)(v),), rows)

    def _at(self, vector: Tensor, call: Callable[[Batch], Any], rows: Batch) -> Any:
        """`call(rows)` while the policy has these parameters, with gradients."""
        parameters = {name: x.detach().requires_grad_() for name, x in self.optimizer.parts(vector).items()}
        with torch.enable_grad():
            return lent(self.policy, parameters, call, rows)

    def _gradient(self, rows: Batch) -> tuple[Tensor, ...]:
        evaluation = self.policy.evaluate(rows)
        loss, _ = self.objective(evaluation, rows)
        gradients = torch.autograd.grad(loss, self._parameters(), materialize_grads=True)
        self.kind = tree_map(lambda _: None, evaluation.distribution)
        made = [x.detach().clone() for x in leaves_of(evaluation.distribution)]  # no views of parameters
        return torch.cat([each.reshape(-1) for each in gradients]), *made

    def _product(self, rows: Batch) -> Product:
        return fisher_vector_product(self.policy.evaluate(rows).distribution, rows.mask, self._parameters())

    def _parameters(self) -> list[Tensor]:
        return [p for name, p in self.policy.named_parameters() if name in self.optimizer.shapes]
