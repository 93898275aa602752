"""Batch: the named tensors of one collection."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def tree_map(f: Callable[[Any], Any], tree: Any) -> Any:
    """Apply `f` to every tensor of a nested dict or tuple of tensors; distributions are named tuples of tensors."""
    if isinstance(tree, dict):
        return {key: tree_map(f, value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        mapped = [tree_map(f, value) for value in tree]
        return type(tree)(*mapped) if hasattr(tree, "_fields") else tuple(mapped)
    return f(tree)


def leaves_of(tree: Any) -> list[Tensor]:
    """Every tensor of such a tree, in a fixed order."""
    found: list[Tensor] = []
    tree_map(lambda x: found.append(x) or x, tree)
    return found


def with_leaves(tree: Any, leaves: Iterable[Tensor]) -> Any:
    """A tree of the same structure with these tensors, in the order of `leaves_of`."""
    following = iter(leaves)
    return tree_map(lambda _: next(following), tree)


class Batch:
    """What a source collected, and what was computed from it, column by column.

    Every per-action column is shaped like `logp`: [T, N], T the time step and N the lane (an environment, an agent,
    a sequence). Only `observation`, `action` and `mask` are always there; a column that is asked for and missing is
    an error that names those present. Batches are values: `replace` makes a new one.
    """

    observation: Any  # [T, N, ...] tensor, or a nested dict of them: what the policy saw
    action: Tensor  # [T, N, ...] what it did, in the policy's own units
    mask: Tensor  # [T, N] bool: False where the row is no transition
    start: Tensor  # [T, N] bool: the row is the first of an episode
    reward: Tensor  # [T, N]
    terminated: Tensor  # [T, N] bool: the episode ended in a state whose value is zero
    truncated: Tensor  # [T, N] bool: the episode was cut in a state that still has a value
    logp: Tensor  # [T, N] log-probability of the action under the policy that collected
    value: Tensor  # [T, N] value of the observation when it was collected
    next_value: Tensor  # [T, N] value of the TRUE next observation, the final one where the episode was cut
    advantage: Tensor  # [T, N]
    returns: Tensor  # [T, N] what the value should become
    old: Any  # the distributions over actions of the policy that collected, tensors [T, N, ...]
    features: Any  # [T, N, F] tensors: what a policy made of the observations while it acted, until it is judged
    memory: Any  # [K, N, ...] tensors: what the policy remembered before each K-th part of the rows; where it remembers

    def __init__(self, **columns: Any) -> None:
        self.__dict__.update(columns)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(f"this batch has no column {name!r}; it has {', '.join(self.__dict__)}")

    def replace(self, **columns: Any) -> Batch:
        """A new batch with these columns added or exchanged."""
        return Batch(**{**self.__dict__, **columns})

    def map(self, f: Callable[[Tensor], Tensor]) -> Batch:
        """A new batch with `f` applied to every tensor."""
        return Batch(**{name: tree_map(f, column) for name, column in self.__dict__.items()})

    def leaves(self) -> list[Tensor]:
        """Every tensor, in a fixed order."""
        return leaves_of(self.__dict__)

    def with_leaves(self, leaves: Iterable[Tensor]) -> Batch:
        """A batch of the same columns with these tensors, in the order of `leaves`."""
        return Batch(**with_leaves(self.__dict__, leaves))

    def to(self, device: torch.device | str) -> Batch:
        return self.map(lambda x: x.to(device))

    def flatten(self) -> Batch:
        """[T, N, ...] -> [T·N, ...]: for learning step by step, where order carries nothing."""
        return self.map(lambda x: x.flatten(0, 1))

    def sequences(self) -> Batch:
        """[T, N, ...] -> [L, K·N, ...]: every lane cut into K pieces of L steps, side by side; `memory` [1, K·N, ...].

        `memory` [K, N, ...] is what a policy remembered before each piece.
        """
        pieces = leaves_of(self.memory)[0].shape[0]

        def cut(x: Tensor) -> Tensor:
            return x.unflatten(0, (pieces, -1)).transpose(0, 1).flatten(1, 2)

        return self.map(cut)

    def whole(self, x: Tensor) -> Tensor:
        """What was made of `sequences()`, [L, K·N, ...], in the order of this batch, [T, N, ...]."""
        return x.unflatten(1, (-1, self.mask.shape[1])).transpose(0, 1).flatten(0, 1)

    def units(self) -> Batch:
        """What minibatches are drawn from: steps [T·N], or sequences [L, K·N] where the policy remembers."""
        return self.sequences() if "memory" in self.__dict__ else self.flatten()

    def unit_count(self) -> int:
        """How many units there are, of a batch that `units()` made."""
        return self.mask.shape[0 if self.mask.dim() == 1 else 1]

    def part(self, units: Tensor) -> Batch:
        """The units at these indices, or where these bools say so: steps [m], or whole lanes [L, m]."""
        places = units.nonzero().squeeze(-1) if units.dtype == torch.bool else units
        dim = 0 if self.mask.dim() == 1 else 1
        return self.map(lambda x: x.index_select(dim, places))
