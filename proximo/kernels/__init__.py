"""The product of small matrices, for graphs on processors where torch's library is slow at it (`product.cpp`)."""

from __future__ import annotations

import ctypes
import getpass
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("proximo")
SOURCE = Path(__file__).with_name("product.cpp")
SHIM = "AOTITorchError aoti_torch_cpu_product(AtenTensorHandle a, AtenTensorHandle b, AtenTensorHandle* c)"
WIDTH = 16  # floats in a vector
LARGEST = 2**16  # numbers of a factor that is packed or streamed through the cache


def product_op() -> Any:
    """The operator, compiled and loaded; None where torch's own is as good, or where no compiler is.

    By rule: MKL has no kernels for the 512-bit vectors of processors that are not Intel's, and takes twice as long
    there (docs/performance.md). Torch's own also knows what to do with several threads.
    """
    return None if torch.get_num_threads() > 1 else loaded()


@cache
def loaded() -> Any:
    if not load():
        return None
    torch.library.define("proximo::product", "(Tensor a, Tensor b) -> Tensor")
    torch.library.impl("proximo::product", "cpu", torch.mm)
    torch.library.register_fake("proximo::product", torch.mm)
    return torch.ops.proximo.product.default


@cache
def load() -> bool:
    """Load the kernel, for graphs to find it by its name; False where it is not for this processor."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or made_by_intel():
        return False
    try:
        ctypes.CDLL(str(built()), mode=ctypes.RTLD_GLOBAL)
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("the product kernel cannot be built, torch's own is used: %s", error)
        return False
    return True


def made_by_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return True


def processor() -> str:
    """The processor's features, for what is compiled for it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def library_folder() -> Path:
    """Where compiled code is kept, beside Inductor's. OSError if others than this user could have written there."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    place = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or f"{tempfile.gettempdir()}/torchinductor_{user}"
    folder = Path(place) / "proximo"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise OSError(f"{folder} is not this user's alone, and code is loaded from it")
    return folder


def built() -> Path:
    """The library, compiled unless it is there."""
    root = Path(torch.__file__).parent
    words = [shutil.which("g++") or "c++", "-O3", "-march=native", "-std=c++17", "-shared", "-fPIC"]
    words += [f"-I{root / 'include'}", str(SOURCE), f"-L{root / 'lib'}", "-ltorch_cpu", f"-Wl,-rpath,{root / 'lib'}"]
    made_for = " ".join([*words, torch.__version__, processor()])
    key = hashlib.sha256(SOURCE.read_bytes() + made_for.encode()).hexdigest()[:16]
    folder = library_folder()
    library = folder / f"product-{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            made = Path(aside) / library.name
            subprocess.run([*words, "-o", str(made)], check=True, capture_output=True)
            os.replace(made, library)
    return library


def fits(a: Tensor, b: Tensor) -> bool:
    """Whether the kernel is for these: float32, of moderate size, vectors along columns, or rows that lie so."""
    rows, inner, columns = *a.shape, b.shape[1]
    if a.dtype != torch.float32 or b.dtype != torch.float32 or inner * max(rows, columns) > LARGEST * 4:
        return False
    if columns % WIDTH == 0:
        return b.stride(1) == 1 or (inner * columns <= LARGEST and rows >= 4)
    return rows % WIDTH == 0 and a.stride(0) == 1


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What stands for torch's matrix products in a graph."""
    product = product_op()
    if product is None:
        return {}

    rows: dict[Any, Tensor] = {}  # factors laid out by rows, once in a graph: of weights, for every step in it

    def by_rows(b: Tensor) -> Tensor:
        if b.stride(1) == 1:
            return b
        key = b.untyped_storage()._cdata, b.storage_offset(), b.shape, b.stride(), b._version
        if key not in rows:
            rows[key] = b.contiguous()
            rows[key, "kept"] = b  # so that its storage is not given to another
        return rows[key]

    def mm(a: Tensor, b: Tensor) -> Tensor:
        if b.shape[1] <= 8 and a.stride(1) == 1 and b.stride(0) == 1 and a.dtype == torch.float32:
            return (a.unsqueeze(1) * b.t()).sum(-1)
        return product(a, by_rows(b) if b.shape[1] % WIDTH == 0 else b) if fits(a, b) else NotImplemented

    def addmm(bias: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
        made = mm(a, b) if beta == 1 and alpha == 1 else NotImplemented
        return made if made is NotImplemented else made + bias

    return {torch.ops.aten.mm.default: mm, torch.ops.aten.addmm.default: addmm}


class Named:
    """Stands for an operator as a key: Inductor's cache of graphs cannot keep settings that hold the operator."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __hash__(self) -> int:
        return hash(loaded())

    def __eq__(self, other: object) -> bool:
        return other is loaded() or (isinstance(other, Named) and other.name == self.name)


def shims() -> dict[str, Any]:
    """What Inductor must know to call the kernel."""
    return {} if product_op() is None else {"aot_inductor.custom_ops_to_c_shims": {Named("proximo::product"): [SHIM]}}
