"""Frame stacking: a policy sees the last k observations of an episode together, and each is kept once.

A stack is a memory of the last k − 1 frames. So the policy has it, as it has a recurrent state: it stacks what it is
shown while acting, and the frames of a sequence while learning, and nothing outside knows of stacks.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from proximo.batch import tree_map
from proximo.errors import UnsupportedSpace
from proximo.observations import Path, pointer, space_map, storage, zeros

State = tuple[Any, Tensor]  # the last k − 1 frames [N, k − 1, ...], and how many of them are of the open episode [N]


class Frames:
    """Stacks of k frames, the oldest first. Before there are as many, the episode's first one is repeated.

    That is Gymnasium's FrameStackObservation with padding_type "reset".
    """

    def __init__(self, space: gym.Space, k: int) -> None:
        self.shown, self.k = space, k
        self.space = stacked_space(space, k)

    def initial(self, lanes: int, device: torch.device) -> State:
        """The state of lanes whose episodes begin: no frame is known."""
        past = tree_map(lambda x: torch.from_numpy(x).to(device), zeros(self.shown, lanes, self.k - 1))
        return past, torch.zeros(lanes, dtype=torch.int64, device=device)

    def __call__(self, observation: Any, state: State, start: Tensor) -> tuple[Any, State]:
        """Frames [T, N, ...], the state before them, start [T, N] bool -> stacks [T, N, k, ...], the state after."""
        past, known = state
        first = episode_start(start, known)
        index = stack_index(first, self.k)
        frames = joined(past, observation)
        # as it came, in memory too: a compiled step knows one layout
        after = tree_map(lambda x: x[len(start) :].transpose(0, 1).contiguous(), frames)
        stacks = tree_map(lambda x: x.flatten(0, 1).index_select(0, index.flatten()).unflatten(0, index.shape), frames)
        return stacks, (after, (len(start) - first[-1]).clamp(max=self.k - 1))


def joined(past: Any, now: Any) -> Any:
    """[N, k − 1, ...] and [T, N, ...] -> [k − 1 + T, N, ...], leaf by leaf."""
    if isinstance(past, dict):
        return {key: joined(part, now[key]) for key, part in past.items()}
    if isinstance(past, tuple):
        return tuple(joined(part, other) for part, other in zip(past, now, strict=True))
    return torch.cat([past.transpose(0, 1), now])


def episode_start(start: Tensor, known: Tensor) -> Tensor:
    """The row [T, N] in which each row's episode began: −known where it did before the first one.

    A running maximum in log₂ T steps, of operations that every compiler and exporter knows.
    """
    now = torch.arange(len(start), device=start.device).unsqueeze(-1)
    begun, reach = torch.where(start, now, -known), 1
    while reach < len(begun):
        begun = torch.cat([begun[:reach], torch.maximum(begun[reach:], begun[:-reach])])
        reach *= 2
    return begun


def stack_index(first: Tensor, k: int) -> Tensor:
    """Where the frames of each row's stack lie: [T, N] -> int64 [T, N, k], among flattened frames [(k − 1 + T)·N, ...].

    `first` is the row in which a row's episode began. The first k − 1 frames of a lane came before row 0.
    """
    steps, lanes = first.shape
    age = torch.arange(k - 1, -1, -1, device=first.device)
    now = torch.arange(steps, device=first.device)[:, None, None]
    row = torch.maximum(now - age, first.unsqueeze(-1)) + k - 1
    return row * lanes + torch.arange(lanes, device=first.device).unsqueeze(-1)


def stacked_space(space: gym.Space, k: int) -> Any:
    """The space of stacks of k observations, leaf by leaf [k, ...]; UnsupportedSpace for texts."""

    def many(path: Path, leaf: gym.Space) -> gym.Space:
        match leaf:
            case gym.spaces.Box():
                low, high = (np.repeat(bound[None], k, 0) for bound in (leaf.low, leaf.high))
                kept = storage(leaf, path).dtype if leaf.dtype == np.uint8 else leaf.dtype  # a row of bytes is no image
                return gym.spaces.Box(low, high, dtype=kept.type)
            case gym.spaces.MultiBinary():
                return gym.spaces.MultiBinary([k, *leaf.shape])
            case gym.spaces.Discrete():
                return gym.spaces.MultiDiscrete(np.repeat(leaf.n, k), start=np.repeat(leaf.start, k))
            case gym.spaces.MultiDiscrete():
                return gym.spaces.MultiDiscrete(np.stack([leaf.nvec] * k), start=np.stack([leaf.start] * k))
            case _:
                where = f"the leaf {pointer(path)} of the observation space" if path else "the observation space"
                raise UnsupportedSpace(f"{where} is {leaf}, which cannot be stacked: leave frame_stack at 1")

    return as_space(space_map(many, space))


def as_space(tree: Any) -> gym.Space:
    """A nested dict or tuple of spaces as a space."""
    if isinstance(tree, dict):
        return gym.spaces.Dict({key: as_space(part) for key, part in tree.items()})
    return gym.spaces.Tuple([as_space(part) for part in tree]) if isinstance(tree, tuple) else tree
