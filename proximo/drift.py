"""How far a policy moves: the distributions it had, and its distance from them."""

from __future__ import annotations

import torch

from proximo.batch import Batch
from proximo.policy import Policy


@torch.no_grad()
def remember(policy: Policy, batch: Batch) -> Batch:
    """A batch with the policy's distributions of now as `old` [T, N, ...]: for exact KL terms, before an update."""
    return batch.replace(old=policy.evaluate(batch).distribution)
