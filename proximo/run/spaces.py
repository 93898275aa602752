"""Spaces as JSON and back, so that an agent loads without its environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from proximo.errors import CheckpointError, UnsupportedSpace


def space_to_json(space: gym.Space) -> dict[str, Any]:
    match space:
        case gym.spaces.Box():
            low, high = ([repr(float(x)) for x in bound.reshape(-1)] for bound in (space.low, space.high))
            return {"kind": "box", "shape": list(space.shape), "dtype": str(space.dtype), "low": low, "high": high}
        case gym.spaces.Discrete():
            return {"kind": "discrete", "n": int(space.n), "start": int(space.start), **dtype_of(space)}
        case gym.spaces.MultiDiscrete():
            numbers = {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
            return {"kind": "multi_discrete", **numbers, **dtype_of(space)}
        case gym.spaces.MultiBinary():
            return {"kind": "multi_binary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
    raise UnsupportedSpace(f"space {space} is not supported yet")


def dtype_of(space: gym.Space) -> dict[str, str]:
    """The dtype of whole numbers, where it is not the usual one."""
    return {} if space.dtype == np.int64 else {"dtype": str(space.dtype)}


def dtype_from(described: dict[str, Any]) -> dict[str, Any]:
    """What `dtype_of` said, checked, as an argument."""
    if "dtype" not in described:
        return {}
    dtype = np.dtype(described["dtype"])
    if dtype.kind not in "iu":
        raise ValueError(f"dtype {dtype}")
    return {"dtype": dtype.type}


def space_from_json(described: Any) -> gym.Space:
    """The space; CheckpointError for anything that does not describe one."""
    try:
        match described["kind"]:
            case "box":
                shape, dtype = tuple(described["shape"]), np.dtype(described["dtype"])
                if dtype.kind not in "fiu":
                    raise ValueError(f"dtype {dtype}")
                low, high = (np.array([float(x) for x in described[k]]).reshape(shape) for k in ("low", "high"))
                made = gym.spaces.Box(low.astype(dtype), high.astype(dtype), shape, dtype.type)
            case "discrete":
                made = gym.spaces.Discrete(described["n"], start=described["start"], **dtype_from(described))
            case "multi_discrete":
                made = gym.spaces.MultiDiscrete(described["nvec"], start=described["start"], **dtype_from(described))
            case "multi_binary":
                made = gym.spaces.MultiBinary(described["n"])
            case other:
                raise ValueError(f"kind {other!r}")
        if 0 in (made.shape or ()):
            raise ValueError(f"{made} is empty")
        return made
    except (KeyError, TypeError, ValueError, OverflowError, AssertionError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"config.json describes no space: {error}") from None
