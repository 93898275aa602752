"""Several processes of one run, as torchrun would start them, but quickly."""

from __future__ import annotations

import multiprocessing as mp
import os
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

LARGE = {"transformers.models.llama.modeling_llama", "tests.language.rank_cases"}


def work(rank: int, size: int, port: int, do: Callable[[Path], object], folder: Path) -> None:
    """One process of several, as torchrun starts them; what it says goes to files."""
    names = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size, LOCAL_WORLD_SIZE=size, MASTER_PORT=port)
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    warnings.simplefilter("ignore")  # FSDP2 warns of views
    torch.set_num_threads(1)
    do(folder)


def launch(size: int, do: Callable[[Path], object], folder: Path) -> list[int]:
    """Start so many processes that `do`; their exit codes. They are forked from one that has imported everything."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["proximo.cli", *sys.modules.keys() & LARGE])
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [context.Process(target=work, args=(rank, size, port, do, folder)) for rank in range(size)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    return [-1 if process.exitcode is None else process.exitcode for process in started]
