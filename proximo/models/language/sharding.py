"""Transformers whose parameters lie in shards on all ranks (FSDP2, Zhao et al. 2023, arXiv:2304.11277)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from proximo import ranks


def shard(models: list[nn.Module], device: str) -> None:
    """Leave each rank its shard of these models' parameters; a layer's are brought together while it computes.

    Gradients are sums over ranks, as all losses here are parts of one.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (ranks.size(),))
    for model in models:
        stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        for module in [*stacks[0], model] if stacks else [model]:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        for module in parts(model):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows nothing of scaled sums


def parts(model: nn.Module) -> list[Any]:
    """The modules of a model that hold shards: none where it is not sharded."""
    return [module for module in model.modules() if hasattr(module, "set_reshard_after_forward")]


@contextmanager
def brought_together(model: Any) -> Iterator[None]:
    """A block in which every rank has all of a model, to generate from, which goes through it again and again."""
    pieces = parts(model)
    try:
        for piece in pieces:
            piece.set_reshard_after_forward(False, recurse=False)
            piece.unshard()
        yield
    finally:
        for piece in pieces:
            piece.reshard()
            piece.set_reshard_after_forward(True, recurse=False)
