"""Compiled traces on the disk: made once by a worker, loaded as a library by every run after it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proximo import kernels
from proximo.compiler.trace import Trace

ENTRY = "inductor_entry_cpp"  # Inductor's name for the function in a library
PACKAGE = Path(__file__).parents[1]


def library_of(trace: Trace) -> Path:
    """The library of a trace, compiled unless this machine has it already."""
    description = trace.description()
    threads = torch.get_num_threads()
    key = hashlib.sha256(json.dumps([description, threads, made_by()]).encode()).hexdigest()[:32]
    path = kernels.library_folder() / f"proximo-graph-{key}.so"
    if not path.exists():
        Worker.compile({"trace": description, "to": str(path), "threads": threads})
    return path


@cache
def made_by() -> str:
    """What a library depends on besides its trace: the versions, the processor, and how we compile."""
    sources = [PACKAGE / "compiler" / "worker.py", *sorted((PACKAGE / "kernels").glob("*.*"))]
    how = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    return f"{torch.__version__} {sys.version} {kernels.processor()} {os.environ.get('CXX')} {how}"


def library_call(path: Path) -> Callable[..., tuple[Tensor, ...]]:
    """A library's function. It is Inductor's own calling convention for C++, without the layers above it."""
    kernels.load()  # what libraries find by name
    address = torch._C._dynamo.guards._torchinductor_pyobject_tensor_data_ptr  # type: ignore[attr-defined]
    os.environ["_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"] = str(address)
    spec = spec_from_file_location(ENTRY, path, loader=ExtensionFileLoader(ENTRY, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    entry, aoti = getattr(module, ENTRY), torch._C._aoti  # type: ignore[attr-defined]
    lend, take = aoti.unsafe_alloc_void_ptrs_from_tensors, aoti.alloc_tensors_by_stealing_from_void_ptrs

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(take(entry(lend(list(tensors)))))

    return call


class Worker:
    """The process that compiles; it ends by itself when nothing was asked for some time, or this process ended."""

    running: Worker | None = None

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *filter(None, sys.path)])}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "proximo.compiler.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
            start_new_session=True,  # Ctrl-C is for the run, whose end is the worker's
        )  # fmt: skip
        threading.Thread(target=self.process.wait, daemon=True).start()  # or it would stay a zombie

    @classmethod
    def compile(cls, request: dict[str, Any]) -> None:
        """Wait until the request is done; RuntimeError if it cannot be."""
        answer = cls.running.ask(request) if cls.running is not None else ""
        if not answer:  # it was never started, or has ended
            cls.running = worker = cls()
            answer = worker.ask(request)
            if not answer:
                raise RuntimeError(f"the compiling process ended with {worker.process.wait()}")
        if error := json.loads(answer).get("error"):
            raise RuntimeError(error)

    def ask(self, request: dict[str, Any]) -> str:
        """The answer to one request, empty if the process has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return ""
        return self.process.stdout.readline()
