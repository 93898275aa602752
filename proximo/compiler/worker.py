"""Compiles traces with Inductor: in a process of its own, which spares the run the compiler's 150 MB.

    python -m proximo.compiler.worker      reads one JSON object a line, {"trace", "to", "threads"}; answers in JSON

It ends when its input does, or when nothing was asked for some time.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import sys
from collections.abc import Callable, Sequence
from operator import getitem
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from proximo import kernels
from proximo.compiler.library import ENTRY, library_call
from proximo.compiler.trace import WORDS

IDLE = 30.0  # seconds


def main() -> None:
    from torch._functorch import config

    config.enable_autograd_cache = False
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints
    while select.select([sys.stdin], [], [], IDLE)[0] and (line := sys.stdin.readline()):
        request = json.loads(line)
        torch.set_num_threads(request["threads"])
        try:
            answer = compile_library(request["trace"], Path(request["to"]))
        except Exception as error:
            answer = {"error": (str(error).strip() or type(error).__name__).splitlines()[0]}
        print(json.dumps({"to": request["to"], **answer}), file=answers, flush=True)


def compile_library(trace: dict[str, Any], to: Path) -> dict[str, Any]:
    """The trace as a library at `to`, once its call has done what Inductor's own does."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache, CppWrapperCodeCache

    CppPythonBindingsCodeCache.cache_clear()  # or a library that was loaded for another trace would not be loaded now
    CppWrapperCodeCache.cache_clear()
    arguments = [example(*outline) for outline in trace["arguments"]]
    call = compiled(trace, arguments)
    expected = outcome(call, arguments)  # a first call loads the library
    loaded = {str(m.__file__) for name, m in list(sys.modules.items()) if name.endswith(f".{ENTRY}")}
    if len(loaded) != 1:
        raise RuntimeError(f"Inductor made {len(loaded)} libraries of one graph")
    aside = to.with_suffix(f".{os.getpid()}")
    try:
        shutil.copyfile(loaded.pop(), aside)
        ours = outcome(library_call(aside), arguments)
        for one, other in zip(ours, expected, strict=True):
            if one.shape != other.shape or not torch.equal(one.nan_to_num(), other.nan_to_num()):
                raise RuntimeError("the library does not compute what Inductor's own call of it does")
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, to)
    finally:
        aside.unlink(missing_ok=True)
    return {}


def compiled(trace: dict[str, Any], arguments: Sequence[Tensor]) -> Callable[..., Any]:
    """The trace as one call, by Inductor."""
    from torch._inductor import standalone_compile
    from torch.fx.experimental.proxy_tensor import make_fx

    cpu = arguments[0].device.type == "cpu"
    table = {torch.ops.aten.tanh.default: rational_tanh, **kernels.decompositions()} if cpu else {}
    own: dict[str, Any] = {"cpp_wrapper": True, "fx_graph_cache": False, **kernels.shims()}  # libraries are our cache
    options = {"config_patches": own if cpu else {}}
    module = module_of(trace, arguments[0].device)
    graph = make_fx(module, decomposition_table=table, tracing_mode="fake")(*arguments)
    return standalone_compile(graph, list(arguments), dynamic_shapes="from_example_inputs", options=options)


def module_of(trace: dict[str, Any], device: torch.device) -> fx.GraphModule:
    """A module that does what the trace says. Operations are those of `torch.ops`, and nothing else."""
    graph = fx.Graph()
    names: dict[str, Any] = {f"a{i}": graph.placeholder(f"a{i}") for i in range(len(trace["arguments"]))}

    def read(value: Any) -> Any:
        if isinstance(value, list):
            return [read(x) for x in value]
        if not isinstance(value, dict):
            return value
        if "tensor" in value:
            return names[value["tensor"]]
        return device if "device" in value else WORDS[value["word"]]

    for operation, args, keywords, made in trace["operations"]:
        space, name, overload = operation.split(".")
        target = getattr(getattr(getattr(torch.ops, space), name), overload)
        node = graph.call_function(target, tuple(map(read, args)), {key: read(x) for key, x in keywords.items()})
        if isinstance(made, str):
            names[made] = node
        else:
            names |= {each: graph.call_function(getitem, (node, i)) for i, each in enumerate(made)}
    graph.output(tuple(names[name] for name in trace["results"]))
    return fx.GraphModule({}, graph)


def example(shape: list[int], stride: list[int], dtype: str) -> Tensor:
    """A tensor like this: numbers in [0, 1), which as indices are zero."""
    tensor = torch.empty_strided(shape, stride, dtype=WORDS[dtype])  # type: ignore[arg-type]
    return tensor.copy_(torch.rand(shape))


def outcome(call: Callable[..., Any], arguments: Sequence[Tensor]) -> list[Tensor]:
    """What a call returns, and what becomes of its arguments."""
    torch.manual_seed(0)
    arguments = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x) for x in arguments]
    return [*call(*arguments), *arguments]


def rational_tanh(x: Tensor) -> Tensor:
    """tanh as a ratio of polynomials, within 4e-7 of it, relatively too; exact library code takes five times as long.

    The minimax coefficients are those of Eigen's and XLA's tanh for float32; others than float32 get the exact one.
    """
    if x.dtype != torch.float32:
        return NotImplemented
    x = x.clamp(-7.90531110763549805, 7.90531110763549805)
    y = x * x
    top = -2.76076847742355e-16 * y + 2.00018790482477e-13
    for coefficient in (-8.60467152213735e-11, 5.12229709037114e-08, 1.48572235717979e-05, 6.37261928875436e-04):
        top = top * y + coefficient
    bottom = 1.19825839466702e-06 * y + 1.18534705686654e-04
    for coefficient in (2.26843463243900e-03, 4.89352518554385e-03):
        bottom = bottom * y + coefficient
    return x * (top * y + 4.89352455891786e-03) / bottom


if __name__ == "__main__":
    main()
