"""What a run computes with: device, compiler and threads, chosen before it begins."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import gymnasium as gym
import torch

from proximo import compiler, ranks
from proximo.errors import ConfigError
from proximo.models.encoders import is_image
from proximo.observations import leaves
from proximo.run.config import Resolved
from proximo.run.seeding import borrowed_generators
from proximo.run.spaces import space_from_json
from proximo.sources.backends import Lanes
from proximo.sources.making import EnvLike
from proximo.sources.tensors import TensorEnv
from proximo.threads import threads

WIDE = 512  # units from which a layer gains by a GPU
# Seconds, from docs/performance.md: what compiling costs the first time, and what it then saves.
COMPILING = 20.0
SAVED_PER_GRADIENT_STEP = 0.6e-3
SAVED_PER_VECTOR_STEP = 20e-6
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, KEPT = -1, -2, -3, 2**30  # mallopt(3)
MADV_HUGEPAGE, HUGE = 14, 2**21  # madvise(2)


def choose_device(config: Resolved, env: EnvLike) -> tuple[str, str]:
    """The device and why; ConfigError where a GPU was asked for and there is none."""
    asked, there = config.run.device, torch.cuda.is_available()
    if isinstance(env, TensorEnv):
        try:
            home = torch.device(env.device).type
        except (TypeError, RuntimeError):
            raise ConfigError(f"the environment's device is {env.device!r}, not a torch.device") from None
        if asked not in ("auto", home):
            raise ConfigError(f"device is {asked}, but the environment lives on {env.device}: leave out device")
        return home, "where the environment lives"
    if asked == "cuda" and not there:
        raise ConfigError("device is cuda, but torch finds no GPU: use --device cpu")
    if asked != "auto":
        return asked, "as asked"
    if there and torch.cuda.device_count() < ranks.beside():
        return "cpu", f"there is no GPU for each of {ranks.beside()} processes"
    if there and has_images(config):
        return "cuda", "an image network gains by it"
    widest = max(*config.network.hidden, config.network.memory_size if config.network.memory != "none" else 0, 0)
    if there and widest >= WIDE:
        return "cuda", f"a layer of {widest} units gains by it"
    return "cpu", "a small network is faster there" if there else "torch finds no GPU"


def choose_compile(config: Resolved) -> tuple[str, str]:
    """Whether to compile, "on" or "off", and why.

    By rule, not by stopwatch: compiled and uncompiled numbers differ by rounding, and a run must not depend on how
    busy the machine was or on what it compiled before.
    """
    if ranks.launched() > 1:
        return "off", "several processes add up their gradients in every step"
    asked, missing = config.run.compile, compiler.missing()
    if asked == "off":
        return "off", "as asked"
    if missing is not None:
        return "off", missing
    if asked == "on":
        return "on", f"as asked; the first update waits for it, {COMPILING:.0f} s or so the first time"
    if has_images(config):
        return "off", "an image network's time goes into products, which it cannot speed up"
    updates = config.run.steps // config.rollout
    parts = getattr(config.algorithm, "epochs", 1) * getattr(config.algorithm, "minibatches", 1)
    saved = updates * (parts * SAVED_PER_GRADIENT_STEP + config.algorithm.horizon * SAVED_PER_VECTOR_STEP)
    if saved < 1.5 * COMPILING:
        return "off", f"it would save about {saved:.0f} s of this run, and take {COMPILING:.0f} s the first time"
    return "on", f"it saves about {saved:.0f} s of this run (the first time it takes {COMPILING:.0f} s)"


def choose_overlap(config: Resolved, lanes: Lanes) -> tuple[str, str]:
    """Whether half of the lanes is to step while the policy acts for the other, "on" or "off", and why.

    By rule, as `choose_compile`: what a network makes of half of the rows differs by rounding.
    """
    asked = config.run.overlap
    if asked == "off":
        return "off", "as asked"
    if lanes.half is None:
        if asked == "on":
            raise ConfigError(f"overlap is on, but {lanes.whole}: leave it out")
        return "off", lanes.whole
    if asked == "on":
        return "on", "as asked"
    if not has_images(config):
        return "off", "a small network acts faster than half of the lanes is worth"
    if lanes.backend == "async" and config.run.backend == "auto":
        return "off", "the backend was chosen by a stopwatch, which must not change numbers: --backend async allows it"
    return "on", "half of the lanes steps while the image network acts for the others"


def has_images(config: Resolved) -> bool:
    """Whether an image network is to see what the environment shows."""
    if config.network.images == "numbers" or "observation" not in config.spaces:
        return False
    shown = leaves(space_from_json(config.spaces["observation"])).values()
    return any(isinstance(leaf, gym.spaces.Box) and is_image(leaf) for leaf in shown)


@cache
def keep_memory() -> None:
    """Let the C library keep what is freed, in huge pages, where it is glibc.

    Else every large tensor is new memory, which the kernel clears page by page: a pass over 1,024 of Atari's pictures
    took 190 ms instead of 100. Pages of 2 MiB, where Linux gives them to who asks, are found faster; addresses for them
    are asked for at once, where the kernel does not count these as memory.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for name, size in ((M_MMAP_THRESHOLD, KEPT), (M_TRIM_THRESHOLD, KEPT), (M_TOP_PAD, KEPT // 16)):
            libc.mallopt(name, size)
        libc.malloc.restype = ctypes.c_void_p
        lenient = Path("/proc/sys/vm/overcommit_memory").read_text().strip() != "2"
        if lenient and (place := libc.malloc(ctypes.c_size_t(KEPT // 2))):
            begin = -(-place // HUGE) * HUGE
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(KEPT // 2 - HUGE), MADV_HUGEPAGE)
            libc.free(ctypes.c_void_p(place))


@contextmanager
def computing(config: Resolved) -> Iterator[None]:
    """A block in which torch computes as the run asks; the caller's generators are put back afterwards."""
    run = config.run
    if run.device == "cpu" and has_images(config):
        keep_memory()
    with (
        ranks.joined(run.device), threads(run.threads), compiler.compiling(run.compile == "on"), borrowed_generators(),
        repeatable() if run.device == "cuda" else contextlib.nullcontext(),
    ):  # fmt: skip
        yield


def repeatable() -> contextlib.AbstractContextManager[None]:
    """A block in which a GPU's convolutions give the same bits again, of float32, or no run would resume exactly."""
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
