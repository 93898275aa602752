"""What first-order optimizers share: a policy's parameters as one vector, and numbers that live in tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proximo.errors import ConfigError


class Optimizer:
    """A policy's trainable parameters become views of one vector [P], so that a step is arithmetic on a few tensors.

    `state` holds that vector, the learning rate and what else an optimizer remembers, by name. They all stay the same
    tensors and are changed in place.
    """

    def __init__(self, policy: Any, lr: float) -> None:
        named = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
        self.shapes = {name: parameter.shape for name, parameter in named.items()}
        vector = torch.cat([parameter.detach().reshape(-1) for parameter in named.values()])
        self.state = {"vector": vector, "lr": torch.tensor(lr, dtype=torch.float64, device=vector.device)}
        for name, part in self.parts(vector).items():
            named[name].data = part
        self.graphs: dict[Any, Any] = {}  # compiled gradient steps

    def descend(self, gradient: Tensor, state: dict[str, Tensor]) -> None:
        """One step against a gradient [P], in place; `state` is the optimizer's own, or stands for it in a trace."""
        raise NotImplementedError

    def parts(self, vector: Tensor) -> dict[str, Tensor]:
        """The parameters by name, as views of a vector [P]."""
        pieces = vector.split([shape.numel() for shape in self.shapes.values()])
        return {name: x.view(shape) for (name, shape), x in zip(self.shapes.items(), pieces, strict=True)}

    @property
    def lr(self) -> float:
        return self.state["lr"].item()

    @lr.setter
    def lr(self, lr: float) -> None:
        self.state["lr"].fill_(lr)

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Parameters and all that is remembered as they were in a copy of `state`."""
        for name, tensor in state.items():
            self.state[name].copy_(tensor)

    def must_hold(self, policy: Any) -> None:
        """ConfigError if the policy's parameters are no longer views of this optimizer's vector."""
        first = next(parameter for parameter in policy.parameters() if parameter.requires_grad)
        if first.data_ptr() != self.state["vector"].data_ptr():
            raise ConfigError(
                "the policy's parameters are no longer this optimizer's: make one optimizer for a policy, after the "
                "policy was moved or loaded"
            )

    def state_tensors(self) -> dict[str, Tensor]:
        """The live tensors besides the parameters, moments as {"parameter.exp_avg": …}."""
        found: dict[str, Tensor] = {}
        for name, tensor in self.state.items():
            if tensor.dim() == 0:
                found[name] = tensor
            elif name != "vector":
                found |= {f"{parameter}.{name}": part for parameter, part in self.parts(tensor).items()}
        return found
