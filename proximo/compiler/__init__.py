"""Functions of tensors as one compiled call each: traced by running them once, compiled by Inductor.

`trace` writes down what a function does, `worker` compiles it in a process of its own, `library` keeps what came out
and calls it. Tracing sees the operations that a function and its gradient run, whatever Python they came from, so
whoever writes Terms and policies never meets it. It sees one run: a number that changes while training must be a
tensor, or the graph keeps what it was (`updaters.sgd` checks its graph against the uncompiled function now and then).
"""

from __future__ import annotations

import gc
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from proximo.compiler.library import call_of
from proximo.compiler.trace import Trace
from proximo.replay import replayed

log = logging.getLogger("proximo")
_compiling: ContextVar[bool] = ContextVar("compiling", default=False)


@contextmanager
def compiling(on: bool) -> Iterator[None]:
    """Whether `fuse` compiles, for as long as the block lasts.

    What there is before the block, and what compiling leaves behind, is spared the garbage collector until its end:
    looking through it again and again took a tenth of a run's time.
    """
    token, mine = _compiling.set(on), gc.get_freeze_count() == 0
    if mine:
        if on:
            gc.collect()  # an earlier run's graphs, which nobody needs any more
        gc.freeze()
    try:
        yield
    finally:
        if mine:
            gc.unfreeze()
        _compiling.reset(token)


def compiling_is_on() -> bool:
    return _compiling.get()


def missing() -> str | None:
    """Why nothing can be compiled here; None where it can."""
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        return "there is no C++ compiler (install g++)"
    return None


def fuse(
    function: Callable[..., Any], tensors: Sequence[Tensor], lasting: Iterable[int] = ()
) -> Callable[..., tuple[Tensor, ...]] | None:
    """`function(*tensors)`, which returns a tuple of tensors, as one call for tensors of these shapes.

    It may change arguments in place: those at the positions `lasting`, which are used where they are also where a GPU
    plays the call as a CUDA graph. None where compiling is off, or where the function cannot be traced or compiled,
    which is said once: the caller then runs the function as it is.
    """
    if not _compiling.get():
        return None
    try:
        return replayed(_compiled(function, tensors), tensors, lasting)
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        log.warning("%s cannot be compiled and runs uncompiled: %s", getattr(function, "__name__", "a graph"), first)
        return None


def _compiled(function: Callable[..., Any], tensors: Sequence[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    trace = Trace(function, tensors)
    if trace.arguments[0].device.type == "cpu":
        call = call_of(trace)
    else:
        from proximo.compiler.worker import compiled

        call = compiled(trace.description(), trace.arguments)
        gc.freeze()
    closed_over = trace.arguments[len(tensors) :]
    return call if not closed_over else lambda *tensors: call(*tensors, *closed_over)


def fused(module: Any, function: Callable[..., Any], example: Sequence[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """`function(*tensors)`, which reads the module's parameters and buffers, in one call for tensors like `example`.

    The function itself where nothing is compiled. Either way without gradients.
    """
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    count = len(example)

    def with_own(*tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return lent(module, dict(zip(own, tensors[count:], strict=True)), function, *tensors[:count])

    with_own.__name__ = function.__name__
    live = [tensor.detach() for tensor in own.values()]
    graph = fuse(with_own, [*example, *live], range(count, count + len(live)))
    return torch.no_grad()(function) if graph is None else lambda *tensors: graph(*tensors, *live)


def fused_batch(module: Any, function: Callable[[Any], Any], example: Any) -> Callable[[Any], Any]:
    """`function(batch)`, which reads the module's parameters and buffers and returns a batch, in one call.

    For batches with columns like the example's; a column may be a nest of tensors, in what is returned too.
    """
    given, made = example.map(lambda x: x.new_empty(0)), list[Any]()  # what columns there are, without their numbers

    def on_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
        result = function(given.with_leaves(tensors))
        made[:] = [result.map(lambda x: None)]
        return tuple(result.leaves())

    on_tensors.__name__ = function.__name__
    call = fused(module, on_tensors, example.leaves())

    def on_batch(batch: Any) -> Any:
        tensors = call(*batch.leaves())
        return made[0].with_leaves(tensors)

    return on_batch


def whole(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A pure function of tensors, and of numbers by keyword, as one call where compiling is on."""
    graphs: dict[Any, Callable[..., tuple[Tensor, ...]] | None] = {}

    @wraps(function)
    def call(*tensors: Tensor, **numbers: float) -> Tensor:
        if not _compiling.get():
            return function(*tensors, **numbers)
        key = (*numbers.values(), *((tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in tensors))
        if key not in graphs:

            def with_numbers(*tensors: Tensor) -> tuple[Tensor]:
                return (function(*tensors, **numbers),)

            with_numbers.__name__ = function.__name__
            graphs[key] = fuse(with_numbers, tensors)
        graph = graphs[key]
        return function(*tensors, **numbers) if graph is None else graph(*tensors)[0]

    return call


class _Call(nn.Module):
    """A call that looks at a module, for `functional_call` to lend it other tensors."""

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, *args: Any) -> Any:
        return self.call(*args)


def lent(module: Any, tensors: dict[str, Tensor], call: Callable[..., Any], *args: Any) -> Any:
    """`call(*args)` while the module's parameters and buffers of these names are these tensors."""
    named = {f"module.{name}": tensor for name, tensor in tensors.items()}
    return torch.func.functional_call(_Call(module, call), named, args)
