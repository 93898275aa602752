"""Holds an environment that lives in tensors to what it promised, without waiting for the device in a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from proximo.batch import leaves_of, with_leaves
from proximo.compiler.trace import tracing
from proximo.errors import EnvFailure, NonFiniteError, ProximoError, UnsupportedSpace
from proximo.observations import MASK, Path, choices, leaves, pointer, space_map
from proximo.sources.buffers import Leaf, mask_among, stored_leaves

DTYPES = {np.dtype(np.float32): torch.float32, np.dtype(np.int64): torch.int64, np.dtype(np.uint8): torch.uint8}
Bad = tuple[int, str, ProximoError]  # the step of what is wrong, what it is in, and the error


def must_live_in_tensors(seen: gym.Space, action: gym.Space) -> None:
    """UnsupportedSpace for texts that are seen, and for actions that have other units than the policy's own."""
    for path, leaf in leaves(seen).items():
        if isinstance(leaf, gym.spaces.Text):
            where = f"the leaf {pointer(path)} of a tensor environment" if path else "a tensor environment"
            raise UnsupportedSpace(f"{where} is {leaf}, but a tensor holds no text: give its codes as MultiDiscrete")
    parts = list[gym.Space]()
    space_map(lambda path, leaf: parts.append(leaf), action)
    for part in parts:
        bounded = isinstance(part, gym.spaces.Box) and bool(np.isfinite([part.low, part.high]).any())
        if bounded or np.any(getattr(part, "start", 0)):
            raise UnsupportedSpace(
                f"action space {part} of a tensor environment: a Box must be unbounded and a choice begin at 0; "
                "scale, clip and shift within its step()"
            )


class Contract:
    """What a TensorEnv of these spaces and lanes returns."""

    def __init__(self, seen: gym.Space, action: gym.Space, lanes: int) -> None:
        self.space, self.lanes, self.leaves = seen, lanes, stored_leaves(seen)
        self.options = choices(action) if mask_among(self.leaves) else []
        self.ends: dict[Path, tuple[Tensor, Tensor]] = {}  # of the choices: the first option, and the first beyond

    def device_of(self, observation: Any) -> torch.device:
        """Where the first leaf of an observation lives, and all is looked at; the CPU if it is no tensor."""
        device = getattr(part_of(observation, self.leaves[0]), "device", torch.device("cpu"))
        for leaf in self.leaves:
            if leaf.dtype.kind == "i":
                space: Any = leaf.space
                low = torch.as_tensor(space.start, device=device)
                many = space.n if isinstance(space, gym.spaces.Discrete) else space.nvec
                self.ends[leaf.path] = low, low + torch.as_tensor(many, device=device)
        return device

    def observation(self, name: str, value: Any, device: torch.device, own: set[int] | None = None) -> Any:
        """An observation [N, ...] of the space's own structure and order, as `storage` says; else EnvFailure."""
        found = []
        for leaf in self.leaves:
            part = part_of(value, leaf)
            if isinstance(leaf.space, gym.spaces.MultiBinary) and isinstance(part, Tensor) and part.dtype is torch.bool:
                part = part.float()
            shape = self.lanes, *leaf.shape
            found.append(taken(f"{name}{leaf.where}", part, shape, device, DTYPES[leaf.dtype], own))
        return self.tree(found)

    def tree(self, tensors: list[Tensor]) -> Any:
        """Tensors of the leaves as the space has them."""
        following = iter(tensors)
        return space_map(lambda path, leaf: next(following), self.space)

    def witness(self, observation: Any, last: Any, reward: Tensor, final: Any) -> Tensor:
        """A number that is finite only if all numbers are, all choices are some, and some action is always allowed."""
        seen = [[*zip(self.leaves, leaves_of(tree), strict=True)] for tree in (observation, last, final)]
        numbers = [[x for leaf, x in tree if leaf.dtype.kind == "f"] for tree in seen]
        witness = reduce(torch.add, (x.sum() for x in (*numbers[0], *numbers[1], reward, *numbers[2])))
        bad = [self.wrong(leaf, x).any() for tree in seen for leaf, x in tree if leaf.dtype.kind == "i" or leaf.binary]
        if self.options:
            bad.append(self.forbidden(observation).any())
        return reduce(lambda sound, found: torch.where(found, torch.nan, sound), bad, witness)

    def forbidden(self, observation: Any) -> Tensor:
        """The rows [...] whose mask leaves a choice without an option."""
        parts = (observation[MASK] != 0).split(self.options, -1)
        return ~torch.stack([part.any(-1) for part in parts]).all(0)

    def refuse(self, observation: Any, last: Any, reward: Tensor, final: Any, cut: Tensor) -> None:
        """Raise what is wrong first, if anything is; `final` [T, N, ...] counts where `cut` [T, N] alone.

        NonFiniteError names a NaN or infinity, EnvFailure a choice that its space has not, or a mask of zeros.
        """
        ends, found = with_leaves(last, (x.unsqueeze(0) for x in leaves_of(last))), list[Bad]()
        everything = torch.cat([torch.ones_like(cut), torch.ones_like(cut[:1])])
        both = zip(leaves_of(observation), leaves_of(ends), strict=True)
        for leaf, seen, end in zip(self.leaves, map(torch.cat, both), leaves_of(final), strict=True):
            found += self.first_wrong("observation", leaf, seen, everything)
            found += self.first_wrong("final observation", leaf, end, cut)
        found += self.first_wrong("reward", None, reward, torch.ones_like(cut))
        for t, lane in self.forbidden(observation).nonzero()[:1].tolist() if self.options else ():
            where = f"in lane {lane} at step {t} of the rollout"
            words = f"no action is allowed {where}: its mask leaves a choice without an option"
            found.append((t, MASK, EnvFailure(words)))
        for *_, error in sorted(found, key=lambda bad: bad[:2]):
            raise error

    def wrong(self, leaf: Leaf | None, x: Tensor) -> Tensor:
        """The numbers [..., *shape] that cannot be: not finite, or choices and switches that the space has not."""
        if leaf is not None and leaf.path in self.ends:
            low, high = self.ends[leaf.path]
            return (x < low) | (x >= high)
        if leaf is not None and leaf.binary:
            return (x != 0) & (x != 1)
        return ~x.isfinite()

    def first_wrong(self, name: str, leaf: Leaf | None, x: Tensor, where: Tensor) -> Iterator[Bad]:
        """The first number of a column [T, N, ...] that cannot be, in the rows `where` [T, N]."""
        rows = where.reshape(*where.shape, *[1] * (x.dim() - where.dim()))
        for t, lane, *feature in (self.wrong(leaf, x) & rows).nonzero()[:1].tolist():
            value, place = x[(t, lane, *feature)].item(), pointer(leaf.path) if leaf is not None else ""
            what = f"the environment returned {name}{place}{feature or ''} = {value}"
            told = f"in lane {lane} at step {t} of the rollout"
            if leaf is not None and leaf.path in self.ends:
                yield t, name, EnvFailure(f"{what}, which is not in {leaf.space}, {told}")
            elif leaf is not None and leaf.binary:
                yield t, name, EnvFailure(f"{what}, which is neither 0 nor 1, {told}")
            else:
                yield t, name, NonFiniteError(f"{what} {told}")


def part_of(observation: Any, leaf: Leaf) -> Any:
    """The leaf's part of an observation; EnvFailure where it is missing."""
    for key in leaf.path:
        try:
            if isinstance(observation, Tensor):  # whose rows are no parts
                raise KeyError(key)
            observation = observation[key]
        except (KeyError, IndexError, TypeError):
            words = f"the environment returned no observation{pointer(leaf.path)}, which its space has"
            raise EnvFailure(words) from None
    return observation


def taken(
    name: str,
    value: Any,
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    own: set[int] | None = None,
) -> Tensor:
    """What the environment returned, in memory that it will not write to; EnvFailure where it is not such a tensor.

    In a trace only the buffers, whose storages are `own`, are ever written to: what is new needs no copy.
    """
    if not isinstance(value, Tensor):
        raise EnvFailure(f"the environment returned {name} as a {type(value).__name__}, not as a tensor")
    if value.shape != shape:
        raise EnvFailure(f"the environment returned {name} of shape {tuple(value.shape)}, not {shape}")
    if value.device != device:
        raise EnvFailure(f"the environment returned {name} on {value.device}, but the policy is on {device}")
    if value.dtype is dtype:
        return value if own is not None and tracing() and value.untyped_storage()._cdata not in own else value.clone()
    exact = dtype in (torch.bool, torch.uint8) or value.dtype is torch.bool or value.dtype.is_complex
    if exact or (value.dtype.is_floating_point and not dtype.is_floating_point):
        raise EnvFailure(f"the environment returned {name} of {value.dtype}, not of {dtype}")
    return value.to(dtype)


def guarded(what: str, call: Callable[[], Any]) -> Any:
    """What the environment's code returns; EnvFailure if it raises."""
    try:
        return call()
    except ProximoError:
        raise
    except Exception as error:
        raise EnvFailure(f"the environment's {what} raised {type(error).__name__}: {error}") from error


@contextmanager
def pinned(env: Any) -> Iterator[None]:
    """A block after which the environment's buffers are the tensors they were, with what was assigned written in.

    Graphs hold those tensors, and read nothing else.
    """
    modules = env.modules() if isinstance(env, nn.Module) else ()
    before = [(module._buffers, dict(module._buffers)) for module in modules]
    yield
    moved = [(now, name, old) for now, kept in before for name, old in kept.items() if now.get(name) is not old]
    news = [new if (new := now.get(name)) is None else new.clone() for now, name, _ in moved]
    for (now, name, old), new in zip(moved, news, strict=True):
        if old is None:
            continue
        if new is None or new.shape != old.shape or new.dtype != old.dtype:
            got = "None" if new is None else f"{new.dtype} {list(new.shape)}"
            raise EnvFailure(f"the environment's buffer {name!r} was {old.dtype} {list(old.shape)} and became {got}")
        now[name] = old.copy_(new)
