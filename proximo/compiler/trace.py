"""What a function does to tensors, written down: every operation, gradients included, as plain data.

The function runs once on copies, under a mode that sees each operation. Torch's own tracer would do, but it brings
along a compiler that is larger than a training run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_tracing: ContextVar[bool] = ContextVar("tracing", default=False)
# Operations whose result, or its shape, depends on numbers: `item()`, `nonzero()`.
UNKNOWABLE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
# The words of torch that stand among an operation's arguments.
WORDS = {str(x): x for x in vars(torch).values() if isinstance(x, (torch.dtype, torch.layout, torch.memory_format))}


# Ways out of torch, which no mode for operations sees.
EXITS = (Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr)


class Untraceable(Exception):
    """A function that does something else with other numbers."""


def tracing() -> bool:
    """Whether the code that asks is being traced."""
    return _tracing.get()


class Trace:
    """`function(*tensors)`, which returns a tuple of tensors, as operations on named tensors.

    `arguments` are the function's own and after them the tensors that it closes over, which are used where they are.
    Raises Untraceable for what depends on numbers, such as `item()`.
    """

    def __init__(self, function: Callable[..., Any], tensors: Sequence[Tensor]) -> None:
        tape = Tape(tensors)
        token = _tracing.set(True)
        try:
            self.results = tape.results_of(function)
        finally:
            _tracing.reset(token)
        self.arguments, self.operations = tape.arguments, tape.operations

    def description(self) -> dict[str, Any]:
        """All there is to know of the function, for JSON; `worker.module_of` reads it."""
        outlines = [[list(x.shape), list(x.stride()), str(x.dtype)] for x in self.arguments]
        return {"arguments": outlines, "operations": self.operations, "results": self.results}


class Exits(TorchFunctionMode):
    """Refuses to let numbers out of tensors while it is on."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in EXITS:
            raise Untraceable(f"{function.__name__}() takes the numbers out of a tensor")
        return function(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):
    """Records operations while it is on: [operation, arguments, keywords, the name or names of what it made]."""

    def __init__(self, arguments: Sequence[Tensor]) -> None:
        super().__init__()
        self.device, self.arguments, self.operations = arguments[0].device, list[Tensor](), list[Any]()
        self.names: dict[int, str] = {}
        self.kept: list[Tensor] = []  # so that no id is given to another
        self.stand_ins = [self.argument(tensor) for tensor in arguments]
        self.closed_over: dict[int, Tensor] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to be skipped by it would be to import it

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if UNKNOWABLE & set(operation.tags) and not by_numbers(operation, args):
            raise Untraceable(f"{operation} depends on the numbers in a tensor")
        args, kwargs = self.brought(args), self.brought(kwargs or {})
        written = [str(operation), self.written(args), self.written(kwargs)]
        made = operation(*args, **kwargs)
        if isinstance(made, Tensor):
            self.operations.append([*written, self.named(made, f"t{len(self.operations)}")])
        elif isinstance(made, (tuple, list)) and made:
            names = [self.named(x, f"t{len(self.operations)}.{i}") for i, x in enumerate(made)]
            self.operations.append([*written, names])
        elif operation._schema.is_mutable:
            self.operations.append([*written, []])
        return made

    def results_of(self, function: Callable[..., Any]) -> list[str]:
        """Run the function on the stand-ins; the names of what it returns."""
        results = list[str]()
        with torch.random.fork_rng([] if self.device.type == "cpu" else [self.device]), Exits(), self:
            made = [self.brought(tensor) for tensor in function(*self.stand_ins)]
            taken = {memory(x) for x in (*self.stand_ins, *self.closed_over.values())}
            for tensor in made:
                own = tensor.clone() if memory(tensor) in taken else tensor  # else it would change with an argument
                taken.add(memory(own))
                results.append(self.names[id(own)])
        return results

    def argument(self, tensor: Tensor) -> Tensor:
        """One more argument's stand-in, for the function to change."""
        tensor = tensor.detach()
        copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
        self.named(copy.copy_(tensor), f"a{len(self.arguments)}")
        self.arguments.append(tensor)
        return copy

    def named(self, tensor: Any, name: str) -> str:
        self.names[id(tensor)] = name
        self.kept.append(tensor)
        return name

    def brought(self, value: Any) -> Any:
        """The value, with stand-ins for tensors that the function closes over."""
        if isinstance(value, dict):
            return {key: self.brought(x) for key, x in value.items()}
        if isinstance(value, (tuple, list)):
            return type(value)(map(self.brought, value))
        if not isinstance(value, Tensor) or id(value) in self.names:
            return value
        if id(value) not in self.closed_over:
            if memory(value) in map(memory, self.arguments):
                raise Untraceable("it closes over the memory of an argument")
            self.closed_over[id(value)] = self.argument(value)
            self.kept.append(value)
        return self.closed_over[id(value)]

    def written(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, dict):
            return {key: self.written(x) for key, x in value.items()}
        if isinstance(value, (tuple, list)):
            return [self.written(x) for x in value]
        if isinstance(value, Tensor):
            return {"tensor": self.names[id(value)]}
        if isinstance(value, torch.device) and value.type == self.device.type:
            return {"device": value.type}
        if str(value) in WORDS:
            return {"word": str(value)}
        raise Untraceable(f"an operation takes {value!r}")


def by_numbers(operation: Any, args: Any) -> bool:
    """Whether this is `x[indices]`, which is tagged as `x[mask]` is, although its shape is known beforehand."""
    indexing = operation is torch.ops.aten.index.Tensor
    return indexing and all(index is None or index.dtype != torch.bool for index in args[1])


def memory(tensor: Tensor) -> int:
    """What tensors share that are views of each other."""
    return tensor.untyped_storage()._cdata
