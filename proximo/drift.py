"""How far a policy moves: the distributions it had, and its distance from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from proximo.batch import Batch, tree_map
from proximo.compiler import compiling_is_on, fused
from proximo.policy import Policy
from proximo.reduce import masked_mean


@torch.no_grad()
def remember(policy: Policy, batch: Batch) -> Batch:
    """A batch with the policy's distributions of now as `old` [T, N, ...]: for exact KL terms, before an update.

    Copies: a distribution may hold parameters themselves, such as a Gaussian's deviation, which the update changes.
    """
    return batch.replace(old=tree_map(torch.clone, policy.evaluate(batch).distribution))


def kl(policy: Policy, batch: Batch) -> Tensor:
    """Mean exact KL(old ‖ now), nats, over the live rows of the whole batch: a scalar without gradient.

    `batch.old` are the distributions from before, see `remember`. One compiled call where compiling is on.
    """
    rows = Batch(observation=batch.observation, action=batch.action, mask=batch.mask, old=batch.old)

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


_graphs: WeakKeyDictionary[Any, dict[Any, Callable[..., tuple[Tensor, ...]]]] = WeakKeyDictionary()
