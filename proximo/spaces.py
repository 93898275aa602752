"""Observation spaces of any depth: their leaves, where they lie, and as what they are stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from proximo.errors import UnsupportedSpace

Path = tuple[str | int, ...]
SERVED = "Box, Discrete, MultiDiscrete, MultiBinary, Text, and Dict and Tuple of these"


def space_leaves(space: gym.Space, path: Path = ()) -> list[tuple[Path, gym.Space]]:
    """The spaces that are no Dict and no Tuple, with the keys and places that lead to them, in the space's order."""
    match space:
        case gym.spaces.Dict():
            parts: list[tuple[str | int, gym.Space]] = list(space.spaces.items())
        case gym.spaces.Tuple():
            parts = list(enumerate(space.spaces))
        case _:
            return [(path, space)]
    if not parts:
        raise UnsupportedSpace(f"observation space{told(path)} is an empty {type(space).__name__}")
    return [leaf for key, part in parts for leaf in space_leaves(part, (*path, key))]


def space_map(f: Callable[[gym.Space, Path], Any], space: gym.Space, path: Path = ()) -> Any:
    """A tree of the space's structure with f(leaf, path) in each leaf's place."""
    match space:
        case gym.spaces.Dict():
            return {key: space_map(f, part, (*path, key)) for key, part in space.spaces.items()}
        case gym.spaces.Tuple():
            return tuple(space_map(f, part, (*path, i)) for i, part in enumerate(space.spaces))
        case _:
            return f(space, path)


def at(tree: Any, path: Path) -> Any:
    """What lies there in a nested dict or tuple."""
    for key in path:
        tree = tree[key]
    return tree


def told(path: Path) -> str:
    """Where a leaf lies, as one would write it in Python; nothing for the whole."""
    return "".join(f"[{key!r}]" for key in path)


def storage(space: gym.Space, path: Path = ()) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype in which a leaf is kept: whole bytes as they come, other numbers as float32 or int64.

    Text is kept as `text_codes`.
    """
    match space:
        case gym.spaces.Box() if 0 not in space.shape and space.shape:
            return space.shape, np.dtype(np.uint8 if space.dtype == np.uint8 else np.float32)
        case gym.spaces.Discrete():
            return (), np.dtype(np.int64)
        case gym.spaces.MultiDiscrete() if space.shape and len(space.shape) == 1:
            return space.shape, np.dtype(np.int64)
        case gym.spaces.MultiBinary():
            return space.shape, np.dtype(np.float32)
        case gym.spaces.Text():
            return (space.max_length,), np.dtype(np.int64)
    where = f" at observation{told(path)}" if path else ""
    advice = "flatten it with gymnasium.wrappers.FlattenObservation, or write a wrapper that makes arrays of it"
    raise UnsupportedSpace(f"observation space {space}{where} is not supported (supported: {SERVED}); {advice}")


def text_codes(space: gym.spaces.Text, texts: Sequence[str]) -> np.ndarray:
    """Codes [N, max_length] of N strings: 1 + a character's place in the sorted character set, 0 behind the end.

    ValueError for a string that is too long or holds another character.
    """
    place = {character: 1 + i for i, character in enumerate(sorted(space.character_set))}
    codes = np.zeros((len(texts), space.max_length), np.int64)
    for row, text in zip(codes, texts, strict=True):
        if len(text) > space.max_length:
            raise ValueError(f"{text!r} is longer than {space.max_length} characters")
        if unknown := set(text) - place.keys():
            raise ValueError(f"{text!r} holds {min(unknown)!r}, which is not among the space's characters")
        row[: len(text)] = [place[character] for character in text]
    return codes
