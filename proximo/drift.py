"""How far a policy moves: the distributions it had, its distance from them, and the way back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from proximo.batch import Batch, leaves_of
from proximo.compiler import compiling_is_on, fused, lent
from proximo.policy import Policy
from proximo.reduce import masked_mean

_graphs: WeakKeyDictionary[Any, dict[Any, Callable[..., tuple[Tensor, ...]]]] = WeakKeyDictionary()
Tensors = Mapping[str, Tensor]  # of a policy, by name: parameters and buffers
Distances = Callable[[Batch], tuple[float, float, float]]
NEAR = 0.1  # of a bound: nearer than that, float32 is not trusted to tell on which side of it a KL lies
ROUNDING = 1e-6  # nats; what a KL in float32 may be off, however small it is
SHARE = 1e-6  # of a network's output, that it may be off in float32
AIM = 0.95  # of the step that would just meet the bound if KL grew with its square
TRIALS = 40
SPACED, ENOUGH = 5, 16  # one row in so many shows how far the reference is, where that leaves so many of them


def tensors_of(policy: Policy) -> dict[str, Tensor]:
    """All that decides what a policy does, live, by name."""
    own = [*policy.named_parameters(), *policy.named_buffers()]
    return {name: tensor.detach() for name, tensor in own}


def kl(policy: Policy, batch: Batch) -> Tensor:
    """Mean exact KL(old ‖ now), nats, over the live rows of the whole batch: a scalar without gradient.

    `batch.old` are the distributions that collected, as sources give them. One compiled call where compiling is on.
    """
    rows = looked_at(batch)

    def measure(*columns: Tensor) -> tuple[Tensor]:
        some = rows.with_leaves(columns)
        return (masked_mean(some.old.kl(policy.evaluate(some).distribution), some.mask),)

    leaves = rows.leaves()
    if not compiling_is_on():
        return torch.no_grad()(measure)(*leaves)[0]
    graphs = _graphs.setdefault(policy, {})
    key = next(policy.parameters()).data_ptr(), *((leaf.shape, leaf.dtype) for leaf in leaves)
    if key not in graphs:
        graphs[key] = fused(policy, measure, leaves)
    return graphs[key](*leaves)[0]


def looked_at(batch: Batch) -> Batch:
    """The columns that a distance is measured by, alone: each one more costs a call its share of a microsecond."""
    needed = ("observation", "action", "mask", "old", "start", "memory")
    return Batch(**{name: column for name, column in vars(batch).items() if name in needed})


def distances(policy: Policy, reference: Tensors, example: Batch) -> Distances:
    """A measure of batches like the example: (KL(π_old ‖ π), KL(π_ref ‖ π), error), means over the live rows, in nats.

    π is the policy as it is when it is asked, all of it: its normaliser too. π_old is `batch.old`, π_ref the same
    policy with the tensors `reference`, whom every `spacing`-th row is shown to. One compiled call, in float32, whose
    rounding moves no distribution further than `error`, in deviations; all are NaN if a number of the policy is not
    finite, be it one that no action depends on.
    """
    example = looked_at(example)
    columns, apart = example.map(lambda x: x.new_empty(0)), spacing(example)
    rows, first = len(example.leaves()), len(example.leaves()) + len(reference)
    more = [*reference.values(), *memory_of(policy)]

    def measure(*tensors: Tensor) -> tuple[Tensor]:
        batch, others = columns.with_leaves(tensors[:rows]), dict(zip(reference, tensors[rows:first], strict=True))
        now = policy.evaluate(batch).distribution
        some = batch.replace(old=now)
        some = some if apart == 1 else some.flatten().map(lambda x: x[::apart])
        then = lent(policy, others, lambda: policy.evaluate(some).distribution)
        kls = masked_mean(batch.old.kl(now), batch.mask), masked_mean(then.kl(some.old), some.mask)
        error = SHARE * torch.where(batch.mask, slopes(now, batch.mask), 0).amax()
        nothing = sum((x - x).abs().sum() for x in tensors[first:])  # NaN unless all numbers are finite
        return (torch.stack([*kls, error]) + nothing,)

    call, shown = fused(policy, measure, [*example.leaves(), *more]), attrgetter(*vars(example))

    def measured(batch: Batch) -> tuple[float, float, float]:
        update, cumulative, error = call(*leaves_of(shown(batch)), *more)[0].tolist()
        return update, cumulative, error

    return measured


def memory_of(policy: Policy) -> list[Tensor]:
    """All numbers of a policy that may cease to be finite, in few tensors: optimizers keep all parameters in one.

    Tensors that lie in one memory are taken as that where it holds nothing else.
    """
    held, found = dict[int, list[Tensor]](), list[Tensor]()
    for tensor in tensors_of(policy).values():
        if tensor.is_floating_point() or tensor.is_complex():
            held.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
    for some in held.values():
        memory = some[0].untyped_storage()
        alone = sum(x.nbytes for x in some) == memory.nbytes() and len({x.dtype for x in some}) == 1
        found += [some[0].new_empty(0).set_(memory)] if alone else some
    return found


def slopes(distribution: Any, mask: Tensor) -> Tensor:
    """How many deviations of an action it takes if all that a network says changes by its own size, row by row [...].

    Narrow normal distributions have large ones. 0 where a distribution has none (`slope`), as choices.
    """
    return torch.zeros(mask.shape, device=mask.device) + (distribution.slope() if hasattr(distribution, "slope") else 0)


def spacing(batch: Batch) -> int:
    """One row in how many tells the distance from a policy that did not collect: neighbours are much alike.

    Counted across lanes, step by step, so that with any number of them that 5 does not divide all lanes and all steps
    have their turn. Every row does where the policy remembers, for whom one leads to the next.
    """
    return 1 if "memory" in vars(batch) or batch.mask.numel() < SPACED * ENOUGH else SPACED


@torch.no_grad()
def exact_kl(policy: Policy, before: Tensors, batch: Batch) -> float:
    """KL(π_before ‖ π) in nats, the mean over the live rows, computed in float64 from the tensors of both."""

    def double(x: Tensor) -> Tensor:
        return x.double() if x.is_floating_point() else x

    rows = batch.map(double)
    old, new = (
        lent(policy, {name: double(x) for name, x in own.items()}, lambda: policy.evaluate(rows).distribution)
        for own in (before, tensors_of(policy))
    )
    return masked_mean(old.kl(new), batch.mask).item()


def near(kl: float, bound: float, error: float = 0.0) -> bool:
    """Whether a KL of float32 may lie on the other side of a bound, where distributions are off by `error` deviations.

    A normal distribution that is d deviations from another is d²/2 nats from it, and e more are √(2 KL) e + e²/2.
    """
    off = math.sqrt(2 * max(kl, bound)) * error + error**2 / 2 if error else 0.0
    return abs(kl - bound) <= NEAR * bound + ROUNDING + off


@torch.no_grad()
def backtrack(
    live: Tensors, before: Tensors, kl: float, measure: Callable[[], float], bound: float
) -> tuple[float, float]:
    """Take an update back along its own path until `measure()` is within the bound.

    Returns α, the share of it that is left, which is less than 1, and what was measured there.

    θ = θ_before + α (θ_after − θ_before) for all floating-point tensors of a policy, its normaliser's moments among
    them, written into `live`; `kl` is the distance at α = 1. KL grows about with the square of α where steps are
    short, so the next α is taken from that, and at least half of the one before. Where none of `TRIALS` will do, as
    where a number is not finite, everything is as before, bit for bit, and both are 0.
    """
    after = {name: tensor.clone() for name, tensor in live.items()}
    alpha, hopeless = 1.0, not all(tensor.isfinite().all() for tensor in after.values())
    for _ in range(0 if hopeless else TRIALS):
        alpha *= min(max(AIM * math.sqrt(bound / kl), 0.5), AIM) if math.isfinite(kl) and kl > 0 else 0.5
        for name, tensor in live.items():
            if tensor.is_floating_point():
                tensor.copy_(before[name].lerp(after[name], alpha))
        kl = measure()
        if kl <= bound:
            return alpha, kl
    for name, tensor in live.items():
        tensor.copy_(before[name])
    return 0.0, 0.0
