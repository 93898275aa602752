"""What first-order optimizers share: a policy's parameters as one vector, and numbers that live in tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from proximo.errors import ConfigError


def trainable(policy: Any) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}


def packed(policy: Any) -> Tensor:
    """A new vector [P] of all trainable parameters, which become views of it.

    Products are rounded in an order that depends on where in memory a matrix begins. So policies that are to agree to
    the last bit, a trained one and the same one loaded, lie alike.
    """
    parameters = trainable(policy).values()
    vector = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    for parameter, part in zip(parameters, vector.split([p.numel() for p in parameters]), strict=True):
        parameter.data = part.view(parameter.shape)
    return vector


class Optimizer:
    """A policy's trainable parameters become views of one vector [P], so that a step is arithmetic on a few tensors.

    `state` holds that vector, the learning rate and what else an optimizer remembers, by name. They all stay the same
    tensors and are changed in place.
    """

    def __init__(self, policy: Any, lr: float) -> None:
        self.shapes = {name: parameter.shape for name, parameter in trainable(policy).items()}
        vector = packed(policy)
        self.state: dict[str, Tensor] = {
            "vector": vector,
            "lr": torch.tensor(lr, dtype=torch.float64, device=vector.device),
        }
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
