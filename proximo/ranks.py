"""Processes that train one run together: what they tell each other, and nothing at all where there is one.

Every rank holds the whole batch, which is small beside a model, and takes every decision itself: advantages, statistics
and coefficients are computed as in a run of one process, from the same numbers. What is long is shared: a rank
completes, judges and differentiates its `share` of the lanes, and they tell each other what came of it (`gathered`,
`summed`). So minibatches are the same lanes however many ranks there are, and only the order of sums differs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from proximo.errors import ConfigError, RankLost

PATIENCE = 2.0  # seconds that others have to say that they failed as well
TOLD = "proximo/told"  # in the ranks' store: how many have a failure to tell
_apart = [False]
_tells: list[bool] = []  # whether this process tells of its failure, once it had one
P = ParamSpec("P")
R = TypeVar("R")


class Share(NamedTuple):
    """Which of some things are this rank's: as many on every rank, the last over again where they do not divide."""

    places: Tensor  # int64 [m]
    own: Tensor  # bool [m]: False for those that another rank has


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _apart[0] else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if size() > 1 else 0


def launched() -> int:
    """How many processes a launcher such as torchrun has started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def beside() -> int:
    """How many of them run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", launched()))


def cores() -> int:
    """How many of the machine's cores are for this process."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def first() -> bool:
    """Whether this process writes and speaks: rank 0, joined or about to be."""
    return (dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))) == 0


@contextmanager
def joined(device: str) -> Iterator[None]:
    """A block in which the processes that torchrun started are one run; nothing where there is one, or they are joined.

    On GPUs each takes the one of its number on its machine. ConfigError where there are fewer.
    """
    if launched() < 2 or dist.is_initialized():
        yield
        return
    if device == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise ConfigError(
                f"each process needs a GPU of its own: there are {found} here, and this is number {local}"
            )
        torch.cuda.set_device(local)
    store, mine, count = next(rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=mine, world_size=count)
    try:
        yield
    except BaseException:
        with suppress(RuntimeError):  # whoever kept the store is gone
            _tells[:] = [store.add(TOLD, 1) == 1]  # before the others notice that this one is leaving
            until = time.monotonic() + PATIENCE
            while mine == 0 and store.add(TOLD, 0) < count and time.monotonic() < until:
                time.sleep(0.01)  # the store may live here, and others may be about to ask it
        raise
    finally:
        dist.destroy_process_group()


def tells() -> bool:
    """Whether it is for this process to tell of a failure that all ranks meet: the first that had one does."""
    return _tells[0] if _tells else first()


@contextmanager
def apart() -> Iterator[None]:
    """A block in which every rank works for itself: nothing in it is shared."""
    before, _apart[0] = _apart[0], True
    try:
        yield
    finally:
        _apart[0] = before


def together(f: Callable[P, R]) -> Callable[P, R]:
    """A function that all ranks call; RankLost where another one does not come."""

    @wraps(f)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return f(*args, **kwargs)
        except RuntimeError as error:  # dist's own errors are its children
            if isinstance(error, RankLost):
                raise
            text = str(error).strip().splitlines()[:1]
            raise RankLost(f"a process of this run ended, the last checkpoint stands ({''.join(text)[:200]})") from None

    return called


def share(count: int, device: Any = "cpu") -> Share:
    """This rank's part of `count` things."""
    each = -(-count // size())
    places = torch.arange(rank() * each, (rank() + 1) * each, device=device)
    return Share(places % count, places < count)


@together
def summed(x: Tensor) -> Tensor:
    """The sum of all ranks' `x`, written into it: the same bits on every rank."""
    if size() > 1:
        dist.all_reduce(x)
    return x


@together
def gathered(x: Tensor, count: int, dim: int = 0) -> Tensor:
    """All `count` things along a dimension, of which each rank brings its `share`."""
    if size() == 1:
        return x
    mine = x.contiguous()
    flat = mine.view(torch.uint8) if x.dtype == torch.bool else mine  # of which gloo knows nothing
    parts = [torch.empty_like(flat) for _ in range(size())]
    dist.all_gather(parts, flat)
    return torch.cat([part.view(x.dtype) for part in parts], dim).narrow(dim, 0, count)


@together
def most(number: int) -> int:
    """The largest of all ranks' numbers."""
    if size() == 1:
        return number
    found = torch.tensor(number)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


@together
def told(text: str) -> str:
    """What the first rank says."""
    if size() == 1:
        return text
    data = torch.tensor([*text.encode()], dtype=torch.uint8)
    length = torch.tensor(len(data))
    dist.broadcast(length, 0)
    data = data if first() else torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(data, 0)
    return bytes(data.tolist()).decode()


def must_agree(tensors: Iterable[Tensor]) -> None:
    """RankLost where the ranks do not hold the same numbers; all of them wait here for the last one."""
    if size() > 1:
        mine = torch.stack([torch.zeros(()).double(), *(x.double().sum().cpu() for x in tensors)])[None]
        if not (gathered(mine, size()) == mine).all():
            raise RankLost("the processes of this run no longer hold the same numbers: resume from its last checkpoint")


@contextmanager
def own_stream() -> Iterator[None]:
    """A block in which each rank draws other random numbers; after it, the next ones are the same on all again."""
    if size() == 1:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(torch.initial_seed() + rank() + 1)
        yield


def is_sharded(x: Any) -> bool:
    """Whether a tensor is a DTensor, whose module takes long to import."""
    return hasattr(x, "placements")


def local(x: Any) -> Tensor:
    """What this rank holds of a tensor: its shard, or all of it; the same memory."""
    return x.to_local() if is_sharded(x) else x


@together
def whole(x: Any) -> Tensor:
    """All of a tensor, on every rank."""
    return x.full_tensor() if is_sharded(x) else x


def like(x: Any, part: Tensor) -> Tensor:
    """This rank's part of a tensor that is sharded as `x` is, where that is sharded; the same memory."""
    if not is_sharded(x):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(part, x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride())


def write(x: Any, value: Tensor) -> None:
    """Put all of a tensor's numbers into what this rank holds of it."""
    if is_sharded(x):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(x.device), x.device_mesh, x.placements, src_data_rank=None)
    local(x).copy_(local(value))
