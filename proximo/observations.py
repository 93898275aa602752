"""What observations look like as tensors: the leaves of a space, and how each is stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from proximo.errors import EnvFailure, UnsupportedSpace

MASK = "action_mask"  # the key of a Dict that says which options of all choices are allowed, in a row
MASKABLE = "Discrete and MultiDiscrete have masks, alone or within Dict and Tuple"
Path = tuple[str | int, ...]  # the keys and indices that lead to a leaf; () is the observation itself
SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary and Text, in Dict and Tuple of any depth"


class Storage(NamedTuple):
    """How the observations of a leaf are stored: [..., *shape] of this dtype."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def space_map(f: Callable[[Path, gym.Space], Any], space: gym.Space, path: Path = ()) -> Any:
    """Apply `f` to every leaf of a space and its path: a nested dict or tuple, as the observations are."""
    if isinstance(space, gym.spaces.Dict):
        return {key: space_map(f, part, (*path, key)) for key, part in space.spaces.items()}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(space_map(f, part, (*path, i)) for i, part in enumerate(space.spaces))
    return f(path, space)


def leaves(space: gym.Space) -> dict[Path, gym.Space]:
    """The leaves of a space by their paths, in the space's own order; UnsupportedSpace if one cannot be stored."""
    found: dict[Path, gym.Space] = {}
    space_map(lambda path, leaf: found.update({path: leaf}), space)
    if not found:
        raise UnsupportedSpace(f"observation space {space} has nothing in it: give it at least one leaf")
    if len({pointer(path) for path in found}) < len(found):
        raise UnsupportedSpace(f"observation space {space} has two keys that read alike: rename one")
    for path, leaf in found.items():
        storage(leaf, path)
    return found


def pointer(path: Path) -> str:
    """A path as text, "/camera/0", after JSON Pointer (RFC 6901); "~2" is a full stop, which names of tensors lack."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1").replace(".", "~2") for key in path)


def storage(leaf: gym.Space, path: Path = ()) -> Storage:
    """How a leaf is stored; UnsupportedSpace names the leaf if there is no way.

    uint8 Boxes of two dimensions or more, such as images, as they come; every other Box as float32. Discrete and
    MultiDiscrete as int64, the environment's own numbers; MultiBinary as float32; Text as the codes of `text_codes`.
    """
    shape, kind = leaf.shape or (), np.dtype(np.int64)
    match leaf:
        case gym.spaces.Box() if leaf.dtype == np.uint8 and len(shape) > 1:
            kind = np.dtype(np.uint8)
        case gym.spaces.Box() | gym.spaces.MultiBinary():
            kind = np.dtype(np.float32)
        case gym.spaces.Discrete() | gym.spaces.MultiDiscrete():
            pass
        case gym.spaces.Text():
            shape = (leaf.max_length,)
        case _:
            raise unsupported(leaf, path, "turn it into one of those with gymnasium.wrappers.TransformObservation")
    if 0 in shape:
        raise unsupported(leaf, path, "it holds no numbers: leave it out")
    return Storage(shape, kind)


def unsupported(leaf: gym.Space, path: Path, advice: str) -> UnsupportedSpace:
    where = f"the leaf {pointer(path)} of the observation space, {leaf}," if path else f"observation space {leaf}"
    return UnsupportedSpace(f"{where} is not supported (supported: {SUPPORTED}); {advice}")


def zeros(space: gym.Space, *lead: int) -> Any:
    """Memory for observations [*lead]: a tree of arrays [*lead, leaf shape] of zeros; UnsupportedSpace as `leaves`."""
    leaves(space)
    return space_map(lambda path, leaf: np.zeros((*lead, *storage(leaf).shape), storage(leaf).dtype), space)


def choices(space: gym.Space) -> list[int]:
    """How many options each choice of an action has, Discrete and MultiDiscrete at any depth, in the space's order."""
    found: list[int] = []

    def look(path: Path, leaf: gym.Space) -> None:
        if isinstance(leaf, gym.spaces.Discrete):
            found.append(int(leaf.n))
        elif isinstance(leaf, gym.spaces.MultiDiscrete):
            found.extend(leaf.nvec.reshape(-1).tolist())

    space_map(look, space)
    return found


def has_mask(space: gym.Space) -> bool:
    """Whether what is seen says which actions are allowed."""
    return isinstance(space, gym.spaces.Dict) and MASK in space.spaces


def text_codes(space: gym.spaces.Text, texts: Sequence[str]) -> np.ndarray:
    """Texts as int64 [N, max_length]: character i of the sorted charset is i + 1, and 0 pads at the end.

    EnvFailure for a text that is too long or has characters outside the charset, which it names.
    """
    place = {character: i for i, character in enumerate(sorted(space.character_set), 1)}
    codes = np.zeros((len(texts), space.max_length), np.int64)
    for row, text in zip(codes, texts, strict=True):
        if strange := sorted(set(text) - place.keys()):
            named = ", ".join(map(repr, strange))
            raise EnvFailure(f"the environment gave the text {text!r}, but its Text space has no {named}")
        if len(text) > space.max_length:
            longest = f"its Text space says at most {space.max_length}"
            raise EnvFailure(f"the environment gave a text of {len(text)} characters, {longest}: {text!r}")
        row[: len(text)] = [place[character] for character in text]
    return codes
