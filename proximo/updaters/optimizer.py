"""What first-order optimizers share: a policy's parameters as one vector, and numbers that live in tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from proximo import ranks
from proximo.errors import ConfigError
from proximo.updaters.shards import Shards


def trainable(policy: Any) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}


def packed(policy: Any) -> Tensor:
    """A new vector [P] of all trainable parameters, which become views of it; of shards it is a copy.

    Products are rounded in an order that depends on where in memory a matrix begins. So policies that are to agree to
    the last bit, a trained one and the same one loaded, lie alike.
    """
    parameters = trainable(policy).values()
    vector = torch.cat([ranks.local(parameter.detach()).reshape(-1) for parameter in parameters])
    for parameter, part in zip(parameters, vector.split([ranks.local(p).numel() for p in parameters]), strict=True):
        if ranks.local(parameter) is parameter:
            parameter.data = part.view(parameter.shape)
    return vector


class Optimizer:
    """A policy's trainable parameters become views of one vector [P], so that a step is arithmetic on a few tensors.

    `state` holds that vector, the learning rate and what else an optimizer remembers, by name. They all stay the same
    tensors and are changed in place.
    """

    def __init__(self, policy: Any, lr: float) -> None:
        parameters = trainable(policy)
        self.shapes = {name: ranks.local(parameter).shape for name, parameter in parameters.items()}
        vector = packed(policy)
        sharded = any(ranks.local(parameter) is not parameter for parameter in parameters.values())
        self.shards = Shards(list(parameters.values()), vector) if sharded else None
        self.wholes = parameters if sharded else {}
        self.state: dict[str, Tensor] = {
            "vector": vector,
            "lr": torch.tensor(lr, dtype=torch.float64, device=vector.device),
        }
        self.graphs: dict[Any, Any] = {}  # compiled gradient steps

    def gradient(self, loss: Tensor, policy: Any) -> Tensor:
        """Of a loss: [P]."""
        if self.shards is not None:
            return self.shards.gradient(loss)
        parameters = [p for name, p in policy.named_parameters() if name in self.shapes]
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        with torch.no_grad():
            return torch.cat([each.reshape(-1) for each in gradients])

    def summed(self, gradient: Tensor) -> Tensor:
        """The sum of all ranks' gradients."""
        return ranks.summed(gradient) if self.shards is None else self.shards.summed(gradient)

    def total(self, x: Tensor) -> Tensor:
        """The sum of numbers [P] over all parameters, wherever they are."""
        return x.sum() if self.shards is None else self.shards.total(x)

    def norm(self, gradient: Tensor) -> Tensor:
        """L2, over all parameters."""
        if self.shards is None:
            return torch.linalg.vector_norm(gradient)
        return self.shards.total(gradient.square()).sqrt()

    def go(self, gradient: Tensor, state: dict[str, Tensor]) -> None:
        """`descend`, with all parameters."""
        self.descend(gradient, state)
        if self.shards is not None:
            self.shards.spread()

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
        if self.shards is not None:
            self.shards.spread()

    def must_hold(self, policy: Any) -> None:
        """ConfigError if the policy's parameters are no longer views of this optimizer's vector, or sharded."""
        if self.shards is not None:
            return self.shards.take()
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
                parts = self.parts(tensor)
                parts |= {parameter: ranks.like(x, parts[parameter]) for parameter, x in self.wholes.items()}
                found |= {f"{parameter}.{name}": part for parameter, part in parts.items()}
        return found
