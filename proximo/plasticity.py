"""How much of a network is in use: the rank of its features, and the share of its units that are dead."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from proximo.batch import Batch
from proximo.policy import Layered

ROWS = 512  # that are looked at; a rank is no higher
SPECTRUM = 0.99  # of the squared singular values, which the rank's directions hold
STILL = 1e-3  # of a layer's mean activation: a unit that deviates less is dead


@torch.no_grad()
def feature_rank(features: Tensor) -> int:
    """The approximate rank of features [rows, units]: the smallest k with σ₁² + … + σₖ² ≥ 0.99 Σ σᵢ².

    Of the singular values σ₁ ≥ σ₂ ≥ … of the matrix as it is, not centred (Yang et al. 2020, arXiv:1909.12255, section
    2, as Moalla et al. 2024, arXiv:2405.00662, log it). 0 where all are zero. Computed from the eigenvalues of the
    smaller Gram matrix, in float64.
    """
    x = features.double()
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    shares = torch.linalg.eigvalsh(gram.cpu()).clamp(min=0).flip(0).cumsum(0)
    return int((shares < SPECTRUM * shares[-1]).sum()) + 1 if shares[-1] > 0 else 0


@torch.no_grad()
def dead_units(layers: Sequence[Tensor]) -> float:
    """The share, over all layers [rows, units], of units whose output says nothing of the row.

    A unit is dead where its standard deviation over the rows is at most 0.001 of the layer's mean |activation|: a ReLU
    that is never on, a tanh or an ELU that is always at its bound, by one rule. Moalla et al. 2024 (arXiv:2405.00662)
    count what is zero in every row for ReLU, and deviations below 0.001 for tanh. That a unit is measured by its layer,
    so that no scale matters, is from Sokar et al. 2023 (arXiv:2302.12902, eq. 1); their score itself would call a
    saturated unit the most active of all.
    """
    dead = []
    for layer in layers:
        x = layer.double()
        deviation = (x - x.mean(0)).square().mean(0).sqrt()  # a quarter of the time that torch.std takes
        dead.append(deviation <= STILL * x.abs().mean())
    return torch.cat(dead).double().mean().item()


def in_use(policy: object, batch: Batch) -> dict[str, float]:
    """`feature_rank`, of the actor's last hidden layer, and `dead_units`, of all hidden layers of actor and critic.

    On at most ROWS live rows of a collection. Nothing where the policy shows no layers, or has none, or where a number
    in them is not finite. No generator of torch's is touched.
    """
    if not isinstance(policy, Layered):
        return {}
    some = sample(batch)
    actor, critic = ([layer[some.mask] for layer in layers] for layers in policy.layers(some))
    if not actor or not actor[-1].numel() or not all(layer.isfinite().all() for layer in (*actor, *critic)):
        return {}
    return {"feature_rank": feature_rank(actor[-1]), "dead_units": dead_units([*actor, *critic])}


def sample(batch: Batch) -> Batch:
    """At most ROWS rows of a collection, always at the same places: steps, or whole sequences where it has a memory."""
    seen = ("observation", "mask", "start", "memory")
    units = Batch(**{name: column for name, column in vars(batch).items() if name in seen}).units()
    count, length = units.mask.shape[-1], 1 if units.mask.dim() == 1 else len(units.mask)
    many = max(1, min(count, ROWS // length))
    chosen = np.random.default_rng(0).choice(count, many, replace=False)  # a stride could meet one lane alone
    return units.part(torch.from_numpy(chosen).to(units.mask.device))
