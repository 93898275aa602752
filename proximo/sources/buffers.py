"""What environments show, kept as it came: one array for each leaf of the space, written row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from proximo.errors import EnvFailure, NonFiniteError
from proximo.observations import MASK, Path, leaves, pointer, space_map, storage, text_codes

NO_OPTION = "the environment's mask leaves a choice without an option: allow one, or end the episode before"


@dataclass
class Leaf:
    """One leaf of the observations of all lanes."""

    path: Path
    space: gym.Space
    shape: tuple[int, ...]
    dtype: np.dtype
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0))  # [T + 1, N, *shape]
    plain: np.dtype | None = None  # the dtype of values that need no second look

    def stored(self, value: Any, lanes: int) -> np.ndarray:
        """Values of all lanes, of any number where it is −1, in the dtype they are kept in.

        EnvFailure where they are not what the space says.
        """
        if isinstance(self.space, gym.spaces.Text):
            if not all(isinstance(text, str) for text in value):
                raise EnvFailure(f"the environment returned {value!r}{self.where}, not texts")
            return text_codes(self.space, list(value))
        wanted = (len(value) if lanes < 0 else lanes, *self.shape)
        if not isinstance(value, np.ndarray) or value.shape != wanted:
            shape = getattr(value, "shape", type(value).__name__)
            raise EnvFailure(
                f"the environment returned observations{self.where} of shape {shape}, its space says {wanted}"
            )
        if value.dtype == self.dtype:
            return self.in_range(value)
        if self.dtype.kind == "f":
            return self.in_range(as_float32(value))
        if value.dtype.kind not in "biu":
            raise EnvFailure(
                f"the environment returned observations{self.where} of {value.dtype}, its space says {self.dtype}"
            )
        if self.dtype == np.uint8 and value.size and not (value.min() >= 0 and value.max() <= 255):
            raise EnvFailure(f"the environment returned observations{self.where} beyond 0 to 255, which are bytes")
        return self.in_range(value.astype(self.dtype))

    def in_range(self, value: np.ndarray) -> np.ndarray:
        """Choices and switches, if the space has them; EnvFailure names one that it has not."""
        if isinstance(self.space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
            many = self.space.n if isinstance(self.space, gym.spaces.Discrete) else self.space.nvec
            bad = (value < self.space.start) | (value >= self.space.start + many)
        elif self.binary:
            bad = (value != 0) & (value != 1)
        else:
            return value
        for place in np.argwhere(bad)[:1]:
            what = "neither 0 nor 1" if self.binary else f"not in {self.space}"
            raise EnvFailure(f"the environment returned {value[tuple(place)]}{self.where}, which is {what}")
        return value

    @property
    def binary(self) -> bool:
        """Whether its numbers are 0 and 1 alone, as a mask's are, whatever its space."""
        return isinstance(self.space, gym.spaces.MultiBinary) or self.path == (MASK,)

    @property
    def where(self) -> str:
        return f" at {pointer(self.path)}" if self.path else ""


def stored_leaves(space: gym.Space) -> list[Leaf]:
    """The leaves of a space, without memory for any row."""
    return [Leaf(path, leaf, *storage(leaf, path)) for path, leaf in leaves(space).items()]


def mask_among(leaves: Sequence[Leaf]) -> Leaf | None:
    """The leaf that says which actions are allowed."""
    return next((leaf for leaf in leaves if leaf.path == (MASK,)), None)


def without_option(allowed: np.ndarray, choices: Sequence[int]) -> np.ndarray:
    """The rows [N] bool of masks [N, sum of options] that leave one of the choices without an option."""
    options: Any = np.logical_or.reduceat(allowed != 0, np.cumsum([0, *choices])[:-1], -1)
    return ~options.all(-1)


class Observations:
    """Rows [T + 1, N, ...] of every leaf, one row more than steps: what came last. Tensors alias the arrays."""

    def __init__(self, space: gym.Space, lanes: int, steps: int, choices: Sequence[int] = ()) -> None:
        """`choices` are the options of each choice of an action, for a mask to be looked at."""
        self.space, self.lanes = space, lanes
        self.leaves = stored_leaves(space)
        for leaf in self.leaves:
            leaf.rows = np.zeros((steps + 1, lanes, *leaf.shape), leaf.dtype)
            leaf.plain = leaf.rows.dtype if isinstance(leaf.space, gym.spaces.Box) and not leaf.binary else None
        self.allowed = mask_among(self.leaves) if choices else None
        self.choices = choices
        self.rows = [
            list(row) for row in zip(*(torch.from_numpy(leaf.rows).unbind() for leaf in self.leaves), strict=True)
        ]

    def must_allow(self, t: int, live: np.ndarray, step: int, before: int = 0) -> None:
        """EnvFailure where a mask in row `t` of the live lanes [N] leaves a choice without an option.

        `before` are the lanes that come before the first of these.
        """
        if self.allowed is not None:
            for lane in np.flatnonzero(live & without_option(self.allowed.rows[t], self.choices)):
                raise EnvFailure(f"no action is allowed in lane {before + lane} at step {step}: {NO_OPTION}")

    def write(self, t: int, observation: Any) -> None:
        """The observation of all lanes into row `t`."""
        for leaf in self.leaves:
            value = taken(observation, leaf) if leaf.path else observation
            good = type(value) is np.ndarray and value.dtype is leaf.plain and value.shape == leaf.rows.shape[1:]
            leaf.rows[t] = value if good else leaf.stored(value, self.lanes)

    def repair(self, t: int, observation: Any, lanes: np.ndarray) -> None:
        """The observation, in row `t` of these lanes [N] bool alone."""
        for leaf in self.leaves:
            leaf.rows[t][lanes] = leaf.stored(taken(observation, leaf), self.lanes)[lanes]

    def again(self) -> None:
        """The last row becomes the first one."""
        for leaf in self.leaves:
            leaf.rows[0] = leaf.rows[-1]

    def lane(self, t: int, lane: int, where: str) -> list[Tensor]:
        """The leaves of one lane's row `t`, as copies; `where` is for messages."""
        return self._copies([leaf.rows[t, lane] for leaf in self.leaves], where)

    def one(self, observation: Any, where: str) -> list[Tensor]:
        """The leaves of a single observation that an environment returned, as copies."""
        values = [taken(observation, leaf) for leaf in self.leaves]
        lanes = [[value] if isinstance(value, str) else np.asarray(value)[None] for value in values]
        return self._copies([leaf.stored(x, 1)[0] for leaf, x in zip(self.leaves, lanes, strict=True)], where)

    def _copies(self, rows: list[np.ndarray], where: str) -> list[Tensor]:
        for leaf, row in zip(self.leaves, rows, strict=True):
            if leaf.dtype.kind == "f" and not np.isfinite(row).all():
                index = np.argwhere(~np.isfinite(row))[0].tolist()
                raise NonFiniteError(f"the final observation{pointer(leaf.path)}{index} is {row[tuple(index)]} {where}")
        return [torch.from_numpy(np.array(row)) for row in rows]

    def tree(self, tensors: Sequence[Tensor]) -> Any:
        """Tensors of the leaves, in their order, as the space has them."""
        following = iter(tensors)
        return space_map(lambda path, leaf: next(following), self.space)

    def column(self) -> Any:
        """A copy of all rows but the last: a tree of tensors [T, N, ...]."""
        return self.tree([torch.from_numpy(leaf.rows[:-1].copy()) for leaf in self.leaves])

    def culprit(self, upto: int) -> tuple[int, int, str] | None:
        """(step, lane, words) of the first NaN or infinity in the first `upto` + 1 rows."""
        found = []
        for leaf in self.leaves:
            if leaf.dtype.kind == "f" and not np.isfinite(seen := leaf.rows[: upto + 1]).all():
                t, lane, *index = np.argwhere(~np.isfinite(seen))[0].tolist()
                found.append((t, lane, f"observation{pointer(leaf.path)}{index} is {seen[(t, lane, *index)]}"))
        return min(found, default=None)


def taken(observation: Any, leaf: Leaf) -> Any:
    """The leaf's part of an observation; EnvFailure where it is missing."""
    try:
        return reduce(getitem, leaf.path, observation)
    except (KeyError, IndexError, TypeError):
        raise EnvFailure(f"the environment returned no observation{pointer(leaf.path)}, which its space has") from None


def as_float32(values: Any) -> np.ndarray:
    """An array of float32; what is too large becomes infinity, and is refused as such."""
    if isinstance(values, np.ndarray) and values.dtype == np.float32:
        return values
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32)
