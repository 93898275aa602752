"""Everything that changes while training, as live tensors by name: saving reads them, restoring writes into them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from proximo import ranks
from proximo.errors import CheckpointError


def live_tensors(**components: Any) -> dict[str, Tensor]:
    """{"component.name": tensor} of modules and of objects with `state_tensors()`."""
    found: dict[str, Tensor] = {}
    for prefix, component in components.items():
        module = isinstance(component, torch.nn.Module)
        own: dict[str, Tensor] = component.state_dict(keep_vars=True) if module else component.state_tensors()
        found |= {f"{prefix}.{name}": tensor for name, tensor in own.items()}
    return found


@torch.no_grad()
def restore(live: Mapping[str, Tensor], saved: Mapping[str, Tensor], where: str) -> None:
    """Write saved tensors into live ones; CheckpointError, with nothing written, unless all of them fit."""
    if missing := live.keys() ^ saved.keys():
        name = min(missing)
        raise CheckpointError(f"{where}: tensor {name!r} is {'missing' if name in live else 'not known'}")
    for name, tensor in live.items():
        other = saved[name]
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            wanted, got = f"{tensor.dtype} {list(tensor.shape)}", f"{other.dtype} {list(other.shape)}"
            raise CheckpointError(f"{where}: tensor {name!r} is {got}, but this run needs {wanted}")
        if other.is_floating_point() and not other.isfinite().all():
            raise CheckpointError(f"{where}: tensor {name!r} holds NaN or infinity")
    for name, tensor in live.items():
        ranks.write(tensor, saved[name])


class Snapshot:
    """Copies of live tensors, by name, taken again and again: whole memories, for many tensors are views of few."""

    def __init__(self, live: Mapping[str, Tensor]) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}  # the bytes of each memory, and their copy
        for name, tensor in live.items():
            memory = tensor.untyped_storage()
            if memory.data_ptr() not in self.pairs:
                whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(memory)
                self.pairs[memory.data_ptr()] = whole, whole.clone()
            copy = self.pairs[memory.data_ptr()][1].untyped_storage()
            view = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            self.tensors[name] = view.set_(copy, tensor.storage_offset(), tensor.shape, tensor.stride())

    def take(self) -> None:
        """Make the copies what the live tensors are now."""
        for whole, copy in self.pairs.values():
            copy.copy_(whole)
