"""A policy at work in lanes: it chooses step by step, remembers, and judges what was collected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from proximo import ranks
from proximo.batch import Batch, leaves_of, tree_map, with_leaves
from proximo.compiler import fused, fused_batch
from proximo.models.packed import Layouts, keep
from proximo.policy import Looking, Policy

Leaves = tuple[Tensor, ...]  # of a tree, in their order
Begun = Callable[[int], Tensor]  # the lanes [N] bool in which an episode begins at a step


class Actor:
    """A policy with what it remembers of every lane; choosing and judging are one call each where compiling is on."""

    def __init__(self, policy: Policy, lanes: int, observation: Any, noise: Any) -> None:
        """For observations like this tree [N, ...], and noise like this one [T, N, ...]."""
        self.policy, self.blank = policy, policy.initial(lanes)
        self.memory, self.kept = tuple(leaves_of(self.blank)), list[Leaves]()
        self.judge: Callable[[Batch], Batch] | None = None
        self.layouts: Layouts = {}  # of weights, for as long as a collection lasts
        self.act, self.outline, self.sight = acting(policy, observation, tree_map(lambda x: x[0], noise), self.blank)
        self.parts = len(leaves_of(self.outline))
        self.features = list[Leaves]()

    def forget(self) -> None:
        """Remember nothing: every lane begins anew."""
        self.memory = tuple(leaves_of(self.blank))

    def choose(self, t: int, shown: Sequence[Tensor], drawn: Sequence[Tensor], begun: Begun) -> Leaves:
        """The leaves of an action for every lane at step `t` of a collection; `begun(t)` says where episodes begin."""
        if t == 0:
            self.kept, self.features = [], []
            self.layouts.clear()
        if self.memory and t % self.policy.sequence == 0:
            self.kept.append(self.memory)
        try:
            torch.set_autocast_cache_enabled(True)
            keep(self.layouts)
            made = self.act(*shown, *drawn, *self.memory, *([begun(t)] if self.memory else []))
        finally:  # an environment's own networks may learn between its steps
            torch.set_autocast_cache_enabled(False)
            keep(None)
        self.memory = made[len(made) - len(self.memory) :]
        if self.sight:
            self.features.append(made[self.parts : self.parts + len(self.sight)])
        return made[: self.parts]

    def action(self, leaves: Leaves) -> Any:
        """An action as the policy made it."""
        return leaves[0] if isinstance(self.outline, Tensor) else with_leaves(self.outline, leaves)

    def remembered(self, lane: int) -> Iterator[Tensor]:
        """A copy of what is remembered of one lane, leaf by leaf."""
        return (leaf[lane].clone() for leaf in self.memory)

    def judged(self, batch: Batch, last: Any, begun: Tensor) -> Batch:
        """The batch with logp, value, next_value, `old` and, where the policy remembers, `memory`.

        `last` are the observations that came after it, of new episodes where `begun`.
        """
        after = dict[str, Any]()
        if self.memory:
            batch = batch.replace(memory=stacked(self.blank, self.kept))
            after = dict(last_memory=with_leaves(self.blank, self.memory), last_start=begun)
        if self.sight:
            after["features"] = stacked(self.sight, self.features)
        shown = batch.replace(last=last, **after)
        self.judge = self.judge or judging(self.policy, shown)
        try:
            keep(self.layouts)
            return batch.replace(**vars(self.judge(shown)))
        finally:
            keep(None)
            self.layouts.clear()

    @torch.no_grad()
    def values(self, observation: Any, memory: Sequence[Tensor]) -> Tensor:
        """Values [M] of observations [M, ...] that came after what was remembered."""
        return self.policy.value(observation, with_leaves(self.blank, memory))


def noise_for(policy: Policy, steps: int, lanes: int) -> Any:
    """The randomness of this rank's actions [T, N, ...]: its part of what one process would draw for all lanes."""
    count = lanes * ranks.size()
    noise = policy.noise(steps, count)
    return noise if count == lanes else tree_map(lambda x: x[:, ranks.share(count, x.device).places], noise)


def casting(device: torch.device) -> torch.autocast:
    """A block that casts as what is around it, and until whose end what weights are cast to may be kept.

    It is kept where `torch.set_autocast_cache_enabled` says so, which begins with False.
    """
    now, dtype = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
    return torch.autocast(device.type, dtype, now, cache_enabled=False)


def stacked(outline: Any, rows: Iterable[Leaves]) -> Any:
    """A tree like the outline, its leaves stacked from those of many rows: [T, ...]."""
    return with_leaves(outline, map(torch.stack, zip(*rows, strict=True)))


def acting(policy: Policy, observation: Any, noise: Any, memory: Any) -> tuple[Callable[..., Leaves], Any, Any]:
    """`policy.act` for trees like these, as a call from leaves to leaves; those of an action and of `features`.

    (*observation, *noise) -> (*action, *features); where the policy remembers, (…, *memory, start) -> (…, *memory).
    `features` are what a policy that looks made of the observations, and () of any other.
    """
    begun = torch.zeros(len(leaves_of(noise)[0]), dtype=torch.bool, device=policy.device)
    outline = (observation, noise, memory, begun) if leaves_of(memory) else (observation, noise)
    looking: Looking | None = policy if isinstance(policy, Looking) and policy.looks else None

    def acted(observation: Any, noise: Any, memory: Any = (), start: Tensor | None = None) -> tuple[Any, Any, Any]:
        if looking is None:
            action, memory = policy.act(observation, noise, memory, start)
            return action, (), memory
        features, memory = looking.look(observation, memory, start)
        return looking.choose(features, observation, noise), features, memory

    def act(*tensors: Tensor) -> Leaves:
        return tuple(leaves_of(acted(*with_leaves(outline, tensors))))

    with torch.no_grad():
        action, features, _ = acted(*outline)
    return fused(policy, act, leaves_of(outline)), action, features


def judging(policy: Policy, example: Batch) -> Callable[[Batch], Batch]:
    """`judged` for batches like this one."""

    def judge(batch: Batch) -> Batch:
        return judged(policy, batch)

    return fused_batch(policy, judge, example)


def judged(policy: Policy, batch: Batch) -> Batch:
    """What the policy thinks of a batch whose column `last` are the observations that came after it.

    The columns are logp, value, next_value and `old`, the distributions, which a bound on the update, a penalty or a
    natural gradient would else ask for again.
    """
    now = policy.evaluate(batch)
    remembered = (batch.last_memory, batch.last_start) if "memory" in vars(batch) else ()
    next_value = torch.cat([now.value[1:], policy.value(batch.last, *remembered).unsqueeze(0)])
    # a clone, for a distribution may hold a parameter, which is about to change
    return Batch(logp=now.logp, value=now.value, next_value=next_value, old=tree_map(torch.clone, now.distribution))


@torch.no_grad()
def final_values(policy: Policy, batch: Batch, final: Any) -> Tensor:
    """Values [T, N] of the observations `final` [T, N, ...] where the batch is truncated; elsewhere they mean nothing.

    Where the policy remembers, each final observation is one more row of its sequence, right after its own: the row
    that follows begins an episode, and sees nothing of it.
    """
    if "memory" not in vars(batch):
        cut = batch.truncated.nonzero(as_tuple=True)
        values = torch.zeros_like(batch.next_value)
        values[cut] = policy.value(tree_map(lambda x: x[cut], final))
        return values
    names = "observation", "action", "start", "mask", "truncated", "memory"
    all_pieces = Batch(**{name: getattr(batch, name) for name in names}, final=final).sequences()
    some = all_pieces.truncated.any(0).nonzero().squeeze(-1)
    pieces = all_pieces.part(some)
    cut, lane = pieces.truncated, torch.arange(len(some), device=some.device)
    kept = torch.stack([torch.ones_like(cut), cut], 1).flatten(0, 1)  # [2L, m] every row, and what may come after it
    order = (~kept).long().sort(dim=0, stable=True).indices[: int(kept.sum(0).max())]

    def along(rows: Tensor, ends: Tensor) -> Tensor:
        return torch.stack([rows, ends], 1).flatten(0, 1)[order, lane]

    def extended(row: Tensor, end: Tensor) -> Tensor:
        there = cut.reshape(*cut.shape, *[1] * (row.dim() - cut.dim()))
        return along(row, torch.where(there, end, row))

    pairs = zip(leaves_of(pieces.observation), leaves_of(pieces.final), strict=True)
    shown = pieces.replace(
        observation=with_leaves(pieces.observation, (extended(*pair) for pair in pairs)),
        action=tree_map(lambda x: along(x, x), pieces.action),
        start=along(pieces.start, torch.zeros_like(cut)), mask=along(pieces.mask, cut),
    )  # fmt: skip
    value = policy.evaluate(shown).value
    found = value.new_zeros(kept.shape).scatter(0, order, value)[1::2]
    values = value.new_zeros(all_pieces.truncated.shape)
    values[:, some] = found
    return batch.whole(values)
