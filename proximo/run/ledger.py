"""The ledger of drift: every update is held to the run's bound, and how far the policy went is written down."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from proximo.batch import Batch
from proximo.drift import Distances, Tensors, backtrack, distances, exact_kl, near, tensors_of
from proximo.run.plan import Schedule

LARGEST = sys.float_info.max
Exact = Callable[[Any, Tensors, Batch], float]  # KL(before ‖ policy) on a batch
Measure = Callable[[Any, Tensors, Batch], Distances]  # of a policy, a reference, batches like this one


class Ledger:
    """Made for a run that asks for `max_kl`, `stop_drift` or a `drift_reference`; it works for every algorithm.

    The policy is a point that moves, by a step of the algorithm and by what its normaliser takes in; the ledger sees
    where it was and where it is, and knows nothing of what moved it.
    """

    def __init__(
        self,
        policy: Any,
        config: Schedule,
        measure: Measure = distances,
        reference: Tensors | None = None,
        exact: Exact = exact_kl,
    ) -> None:
        """`measure` says how far batches show the policy to have gone from the `reference`, which it is by default.

        `exact` measures the way from what it was where that comes near the bound.
        """
        self.policy, self.config, self.measure, self.exact = policy, config, measure, exact
        first = tensors_of(policy) if reference is None else reference
        self.reference = {name: tensor.clone() for name, tensor in first.items()}
        self.kl_sum = torch.zeros((), dtype=torch.float64)
        self.drift = torch.zeros((), dtype=torch.float64)  # KL(π_ref ‖ π) after the last update
        self.distances: Distances | None = None

    def state_tensors(self) -> dict[str, Tensor]:
        reference = {f"reference.{name}": tensor for name, tensor in self.reference.items()}
        return {**reference, "kl_sum": self.kl_sum, "drift": self.drift}

    @property
    def strayed(self) -> bool:
        """Whether the policy has gone further from the reference than the run may."""
        return beyond(self.drift, self.config)

    def settle(self, batch: Batch, live: Tensors, before: Tensors) -> dict[str, Any]:
        """Hold the update that was just made from `batch` to the bound; its row.

        `live` and `before` are the run's tensors, now and before the update: "policy.…" and "algorithm.…".
        """
        if self.distances is None:
            self.distances = self.measure(self.policy, self.reference, batch)
        kl, drift = asked, _ = self.measured(batch, before)
        alpha, bound = 1.0, self.config.max_kl
        if bound is not None and not kl <= bound:
            now, was = part(live, "policy"), part(before, "policy")
            alpha, kl = backtrack(now, was, kl, lambda: self.exact(self.policy, was, batch), bound)
            forget(live, before)
            drift = at_least_zero(self.distances(batch)[1])
        total = bounded(self.kl_sum.item() + bounded(kl))
        self.kl_sum.fill_(total)
        self.drift.fill_(bounded(drift))
        done = {"alpha": alpha, "kl": kl, "drift": drift, "kl_sum": total}
        return {"max_kl": bound, "kl_asked": asked, **done}

    def measured(self, batch: Batch, before: Tensors) -> tuple[float, float]:
        """KL of the update and drift from the reference, in nats; in float64 where the bound asks for it."""
        assert self.distances is not None
        kl, drift, error = self.distances(batch)
        if self.config.max_kl is not None and near(kl, self.config.max_kl, error):
            kl = self.exact(self.policy, part(before, "policy"), batch)
        return at_least_zero(kl), at_least_zero(drift)


def at_least_zero(kl: float) -> float:
    """A KL that rounding took below zero is zero; NaN stays."""
    return kl if math.isnan(kl) else max(kl, 0.0)


def bounded(x: float) -> float:
    """A number that a checkpoint may hold, for one that is not finite too."""
    return x if math.isfinite(x) else LARGEST


def beyond(drift: Tensor | None, config: Schedule) -> bool:
    """Whether a run's drift (None where it measures none) is more than it may be."""
    return config.stop_drift is not None and drift is not None and bool((drift > config.stop_drift).any())


def part(tensors: Tensors, component: str) -> dict[str, Tensor]:
    """The tensors of one component, under their own names."""
    start = f"{component}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


@torch.no_grad()
def forget(live: Tensors, before: Tensors) -> None:
    """Bring the optimizers' memory of gradients back to what it was before an update that was cut or undone.

    These gradients were taken along a way that the policy did not go, and perhaps far off: a second moment that met one
    of 10⁶ would hold steps down for a thousand more. A share α of such a memory would do so too, so all of it goes,
    and the next update begins with the momentum that this one began with. Everything else stays as the algorithm left
    it: the statistics of rewards and what is kept for replay are about the world; a penalty's weight or a learning
    rate that follows the KL was just told that the step was too long, which is what makes the next one shorter.
    """
    for name, tensor in live.items():
        if is_memory(name):
            tensor.copy_(before[name])


def is_memory(name: str) -> bool:
    """Whether a run's tensor is what an optimizer keeps of past gradients (see `Algorithm.state_tensors`)."""
    component, owner, *rest = name.split(".")
    return component == "algorithm" and "optimizer" in owner and rest != ["lr"]
