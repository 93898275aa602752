"""Every random number of a run follows from (seed, where in the run it is drawn): resuming has nothing to restore."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch

UPDATES, LANES, EVALUATION = range(3)  # independent streams


def derived(seed: int, stream: int, position: int) -> int:
    """A 31-bit seed, independent for each (seed, stream, position)."""
    return int(np.random.SeedSequence([seed, stream, position]).generate_state(1)[0]) >> 1


def seed_all(seed: int) -> None:
    """Seed torch (CPU and CUDA), NumPy and Python, so that also a user's environment or module draws the same."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed asks every kind of device, for 200 µs an update
    if gpu_is_there():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed)
    random.seed(seed)


@cache
def gpu_is_there() -> bool:
    return torch.cuda.is_available()


@contextmanager
def borrowed_generators() -> Iterator[None]:
    """Leave the caller's global generators as they were."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
