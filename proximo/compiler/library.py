"""Compiled traces on the disk: made once by a worker, loaded as a library by every run after it."""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
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
LONGEST = 600  # seconds that one graph may take
PACKAGE = Path(__file__).parents[1]


def call_of(trace: Trace) -> Callable[..., tuple[Tensor, ...]]:
    """The trace as a call, compiled unless this machine has its library already."""
    description = trace.description()
    threads = torch.get_num_threads()
    key = hashlib.sha256(json.dumps([description, threads, made_by()]).encode()).hexdigest()[:32]
    path = kernels.library_folder() / f"graph-{key}.so"
    request = {"trace": description, "to": str(path), "threads": threads}
    if not path.exists():
        Worker.compile(request)
    try:
        return library_call(path)
    except ImportError:  # damaged
        path.unlink(missing_ok=True)
        Worker.compile(request)
        return library_call(path)


@cache
def made_by() -> str:
    """What a library depends on besides its trace: the versions, the processor, the compilers, how we use them."""
    sources = [PACKAGE / "compiler" / "worker.py", *sorted((PACKAGE / "kernels").glob("*.*"))]
    how = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    compiler = shutil.which(os.environ.get("CXX", "g++")) or "c++"
    compiler += subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    here = f"{kernels.processor()} {torch.backends.cpu.get_cpu_capability()} {kernels.load()}"
    return f"{torch.__version__} {sys.version} {here} {compiler} {how}"


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
    lock = threading.Lock()

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
        with cls.lock:
            answer = cls.running.ask(request) if cls.running is not None else None
            if answer is None:  # it was never started, or has ended
                cls.running = worker = cls()
                answer = worker.ask(request)
        if answer is None:
            raise RuntimeError("the compiling process ended")
        if error := answer.get("error"):
            raise RuntimeError(error)

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to one request; None if the process has ended. Whoever stops waiting ends it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            if not select.select([self.process.stdout], [], [], LONGEST)[0]:
                raise RuntimeError(f"compiling took more than {LONGEST} s")
            line = self.process.stdout.readline()
            return json.loads(line) if line else None
        except BrokenPipeError:
            return None
        except BaseException:
            self.process.kill()
            Worker.running = None
            raise
