"""Trying what a user brought, so that what does not fit is one line, and that before the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from proximo.batch import Batch, leaves_of
from proximo.errors import ConfigError, ProximoError


def made(part: str, make: Callable[..., Any], *args: Any) -> nn.Module:
    """What a user's callable makes; ConfigError if it is no module."""
    module = attempted(part, make, *args)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"your {part} is made as {type(module).__name__}: it must be an nn.Module")
    return module


def attempted(part: str, call: Callable[..., Any], *args: Any) -> Any:
    """`call(*args)` on the CPU, without gradients; ConfigError for whatever it raises."""
    try:
        with torch.device("cpu"), torch.no_grad():  # also where only sizes are asked for, of what is ours
            return call(*args)
    except ProximoError:
        raise
    except Exception as error:
        name = getattr(call, "__name__", type(call).__name__)
        raise ConfigError(f"your {part} does not work: {name} raised {type(error).__name__}: {error}") from error


def tried(part: str, module: nn.Module, call: Callable[..., Any], *shown: Any) -> Any:
    """`call(*shown)`; ConfigError where it is no function of what is shown and of the module's parameters."""
    attempted(part, call, *shown)  # makes what is made when it is first used
    seen = [x for each in shown for x in (each.leaves() if isinstance(each, Batch) else leaves_of(each))]
    buffers, drawn = dict(module.named_buffers()), torch.get_rng_state()
    versions, kept = [x._version for x in seen], [x._version for x in buffers.values()]
    result = attempted(part, call, *shown)
    if not torch.equal(drawn, torch.get_rng_state()):
        raise ConfigError(
            f"your {part} draws random numbers (dropout?), so it would not act as it learns: leave that out"
        )
    if [x._version for x in seen] != versions:
        raise ConfigError(f"your {part} changes in place what it is shown: make new tensors instead")
    now = dict(module.named_buffers())
    for (name, buffer), version in zip(buffers.items(), kept, strict=True):
        if now.get(name) is not buffer or buffer._version != version:
            raise ConfigError(
                f"your {part} changes its buffer {name} when it is asked (batch norm?), so it would not act as it "
                "learns: take a LayerNorm, freeze it with eval(), or change it in observe"
            )
    return result


def several(part: str, wanted: str, result: Any) -> tuple[Any, ...]:
    """The result, a tuple of as many things as are wanted; ConfigError for anything else."""
    if not isinstance(result, tuple) or len(result) != wanted.count(",") + 1:
        raise ConfigError(f"your {part} gives {type(result).__name__}: it must give {wanted}")
    return result


def must_have(part: str, thing: Any, names: tuple[str, ...], see: str) -> None:
    """ConfigError unless there are these attributes."""
    if missing := [name for name in names if not hasattr(thing, name)]:
        raise ConfigError(f"your {part} lacks {', '.join(missing)}: see {see}")


def must_be(part: str, what: str, tensor: Any, shape: tuple[int | str, ...]) -> None:
    """ConfigError unless this is a tensor of floats of this shape, in which a word stands for any number."""
    wanted = f"floats [{', '.join(map(str, shape))}]"
    if not isinstance(tensor, Tensor):
        raise ConfigError(f"your {part} gives {type(tensor).__name__} for {what}: they must be {wanted}")
    known = [i for i, size in enumerate(shape) if isinstance(size, int)]
    fits = len(shape) == tensor.ndim and all(tensor.shape[i] == shape[i] for i in known)
    if not fits or not tensor.is_floating_point() or not tensor.numel():
        got = f"{tensor.dtype} {list(tensor.shape)}"
        raise ConfigError(f"your {part} gives {got} for {what}: they must be {wanted}")
