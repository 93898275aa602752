"""Spaces as JSON and back, so that an agent loads without its environment."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import gymnasium as gym
import numpy as np

from proximo.errors import CheckpointError, UnsupportedSpace

LARGEST = 2**24  # numbers in an observation
NUMBERS = {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)} | {"float16", "float32", "float64"}
NUMBERS |= {"bool"}  # of boxes alone
DEEPEST = 16  # spaces within each other


def space_to_json(space: gym.Space) -> dict[str, Any]:
    match space:
        case gym.spaces.Box():
            low, high = (bounds_to_json(bound) for bound in (space.low, space.high))
            return {"kind": "box", "shape": list(space.shape), "dtype": str(space.dtype), "low": low, "high": high}
        case gym.spaces.Discrete():
            return {"kind": "discrete", "n": int(space.n), "start": int(space.start), **dtype_of(space)}
        case gym.spaces.MultiDiscrete():
            numbers = {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
            return {"kind": "multi_discrete", **numbers, **dtype_of(space)}
        case gym.spaces.MultiBinary():
            return {"kind": "multi_binary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
        case gym.spaces.Text():
            characters = "".join(sorted(space.character_set))
            return {"kind": "text", "min": space.min_length, "max": space.max_length, "characters": characters}
        case gym.spaces.Dict():
            if not all(isinstance(key, str) for key in space.spaces):
                raise UnsupportedSpace(f"space {space} has keys that are no strings")
            return {"kind": "dict", "spaces": {key: space_to_json(part) for key, part in space.spaces.items()}}
        case gym.spaces.Tuple():
            return {"kind": "tuple", "spaces": [space_to_json(part) for part in space.spaces]}
    raise UnsupportedSpace(f"space {space} is not supported")


def bounds_to_json(bound: np.ndarray) -> list[str]:
    """A box's bounds one by one, or the one that all share, as an image's pixels do."""
    shared = bound.size > 1 and bool((bound == bound.reshape(-1)[0]).all())
    return [repr(float(x)) for x in bound.reshape(-1)[: 1 if shared else None]]


def bounds_from_json(described: list[str], shape: tuple[int, ...]) -> np.ndarray:
    if not 0 < math.prod(shape) <= LARGEST:
        raise ValueError(f"shape {shape}")
    bounds = np.array([float(x) for x in described])
    return np.full(shape, bounds[0]) if len(bounds) == 1 else bounds.reshape(shape)


def dtype_of(space: gym.Space) -> dict[str, str]:
    """The dtype of whole numbers, where it is not the usual one."""
    return {} if space.dtype == np.int64 else {"dtype": str(space.dtype)}


def dtype_named(name: Any) -> np.dtype:
    """One of NumPy's plain numbers; its own parser takes more than names."""
    if name not in NUMBERS:
        raise ValueError(f"dtype {name!r}")
    return np.dtype(name)


def numbers_in(described: Any, depth: int = 0) -> int:
    """How many numbers an observation of the described space may have, before any memory is taken for it."""
    if depth > DEEPEST:
        raise ValueError(f"it is more than {DEEPEST} spaces deep")
    match described["kind"]:
        case "dict":
            return sum(numbers_in(part, depth + 1) for part in described["spaces"].values())
        case "tuple":
            return sum(numbers_in(part, depth + 1) for part in described["spaces"])
        case "box":
            return math.prod(described["shape"])
        case "multi_binary":
            return int(np.prod(np.array(described["n"], dtype=float)))
        case "text":
            return int(described["max"])
        case _:
            return 1


def dtype_from(described: dict[str, Any]) -> dict[str, Any]:
    """What `dtype_of` said, checked, as an argument."""
    if "dtype" not in described:
        return {}
    dtype = dtype_named(described["dtype"])
    if dtype.kind not in "iu":
        raise ValueError(f"dtype {dtype}")
    return {"dtype": dtype.type}


def space_from_json(described: Any, depth: int = 0) -> gym.Space:
    """The space; CheckpointError for anything that does not describe one."""
    try:
        if depth == 0 and not 0 <= numbers_in(described) <= LARGEST:
            raise ValueError(f"its observations have more than {LARGEST:,} numbers")
        match described["kind"]:
            case "box":
                shape, dtype = tuple(described["shape"]), dtype_named(described["dtype"])
                if dtype.kind not in "fiub":
                    raise ValueError(f"dtype {dtype}")
                low, high = (bounds_from_json(described[k], shape) for k in ("low", "high"))
                made = gym.spaces.Box(low.astype(dtype), high.astype(dtype), shape, dtype.type)
            case "discrete":
                made = gym.spaces.Discrete(described["n"], start=described["start"], **dtype_from(described))
            case "multi_discrete":
                made = gym.spaces.MultiDiscrete(described["nvec"], start=described["start"], **dtype_from(described))
            case "multi_binary":
                made = gym.spaces.MultiBinary(described["n"])
            case "text":
                lengths = dict(min_length=described["min"], charset=described["characters"])
                return gym.spaces.Text(described["max"], **lengths)
            case "dict":
                parts = described["spaces"].items()
                kept = OrderedDict((key, space_from_json(part, depth + 1)) for key, part in parts)  # or it sorts them
                return gym.spaces.Dict(kept)
            case "tuple":
                return gym.spaces.Tuple([space_from_json(part, depth + 1) for part in described["spaces"]])
            case other:
                raise ValueError(f"kind {other!r}")
        if 0 in (made.shape or ()):
            raise ValueError(f"{made} is empty")
        return made
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
        AssertionError,
        RuntimeError,
        MemoryError,
    ) as error:
        raise CheckpointError(f"config.json describes no space: {error}") from None
