"""The last few collections, to learn from again."""

from __future__ import annotations

import torch
from torch import Tensor

from proximo.advantages import revalue
from proximo.batch import Batch, leaves_of
from proximo.policy import Policy

COLUMNS = (
    "observation",
    "action",
    "mask",
    "start",
    "reward",
    "terminated",
    "truncated",
    "logp",
    "next_value",
    "memory",
)


class Rollouts:
    """The last `count` collections, in tensors of fixed shape.

    Each has the `logp` and `next_value` of the policy that collected it, and its rewards unscaled: a scale of one time
    is not that of another.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.count, self.taken = count, torch.zeros((), dtype=torch.int64, device=device)
        self.kept: Batch | None = None  # [count, T, N, ...]

    def make_room(self, example: Batch) -> None:
        """Room for collections like this one, all rows dead."""
        columns = {name: column for name, column in vars(example).items() if name in COLUMNS}
        self.kept = Batch(**columns).map(lambda x: x.new_zeros(self.count, *x.shape))

    def add(self, batch: Batch) -> None:
        """Keep a collection [T, N]; the oldest goes."""
        if self.kept is None:
            self.make_room(batch)
        assert self.kept is not None
        slot = int(self.taken) % self.count
        for name, column in vars(self.kept).items():
            places, new = leaves_of(column), leaves_of(getattr(batch, name))
            for place, x in zip(places, new, strict=True):
                place[slot] = x
        self.taken += 1

    def together(self) -> Batch:
        """All of them side by side, as lanes of one batch [T, count · N]; rows that were never taken are dead."""
        assert self.kept is not None, "add comes first"
        return self.kept.map(lambda x: x.transpose(0, 1).flatten(1, 2))

    def state_tensors(self) -> dict[str, Tensor]:
        columns = vars(self.kept) if self.kept else {}
        leaves = {f"{name}.{i}": x for name, column in columns.items() for i, x in enumerate(leaves_of(column))}
        return leaves | {"taken": self.taken}


@torch.no_grad()
def judged(policy: Policy, batch: Batch) -> tuple[Batch, Tensor]:
    """A batch with today's `value`, with `next_value` as far as `revalue` has it, and today's logp, all [T, N]."""
    now = policy.evaluate(batch)
    return revalue(batch, now.value), now.logp
