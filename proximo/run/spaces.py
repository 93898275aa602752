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
            return {"kind": "discrete", "n": int(space.n), "start": int(space.start)}
        case gym.spaces.MultiDiscrete():
            return {"kind": "multi_discrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
        case gym.spaces.MultiBinary():
            return {"kind": "multi_binary", "shape": list(space.shape)}
    raise UnsupportedSpace(f"space {space} is not supported yet")


def space_from_json(described: Any) -> gym.Space:
    """The space; CheckpointError for anything that does not describe one."""
    try:
        match described["kind"]:
            case "box":
                shape, dtype = tuple(described["shape"]), np.dtype(described["dtype"])
                if dtype.kind not in "fiu":
                    raise ValueError(f"dtype {dtype}")
                low, high = (np.array([float(x) for x in described[k]]).reshape(shape) for k in ("low", "high"))
                return gym.spaces.Box(low.astype(dtype), high.astype(dtype), shape, dtype.type)
            case "discrete":
                return gym.spaces.Discrete(described["n"], start=described["start"])
            case "multi_discrete":
                return gym.spaces.MultiDiscrete(described["nvec"], start=described["start"])
            case "multi_binary":
                return gym.spaces.MultiBinary(described["shape"])
            case other:
                raise ValueError(f"kind {other!r}")
    except (KeyError, TypeError, ValueError, OverflowError, AssertionError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"config.json describes no space: {error}") from None
