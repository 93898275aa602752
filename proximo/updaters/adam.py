"""Adam over a policy's parameters as one vector."""

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


class Adam:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980, Algorithm 1).

    The policy's trainable parameters become views of one vector [P], so that an update is arithmetic on a few tensors,
    which `state` holds by name. They all stay the same tensors and are changed in place.
    """

    def __init__(self, policy: Any, lr: float = 0.0, eps: float = 1e-8, betas: tuple[float, float] = (0.9, 0.999)):
        self.shapes = {name: parameter.shape for name, parameter in trainable(policy).items()}
        self.eps, self.betas = eps, betas
        vector = packed(policy)
        self.state = {
            "vector": vector,
            "exp_avg": torch.zeros_like(vector),
            "exp_avg_sq": torch.zeros_like(vector),
            # β₁ᵗ and β₂ᵗ, kept as products: a power would be taken anew for every few parameters of a compiled step
            "power1": torch.ones((), dtype=torch.float64, device=vector.device),
            "power2": torch.ones((), dtype=torch.float64, device=vector.device),
            "lr": torch.tensor(lr, dtype=torch.float64, device=vector.device),
        }
        self.graphs: dict[Any, Any] = {}  # compiled gradient steps

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

    def descend(self, gradient: Tensor, state: dict[str, Tensor]) -> None:
        """One step against a gradient [P], in place; `state` is the optimizer's own, or stands for it in a trace."""
        beta1, beta2 = self.betas
        vector, exp_avg, exp_avg_sq = state["vector"], state["exp_avg"], state["exp_avg_sq"]
        state["power1"].mul_(beta1)
        state["power2"].mul_(beta2)
        exp_avg.lerp_(gradient, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        step = (state["lr"] / (1 - state["power1"])).to(vector.dtype)
        scale = (1 - state["power2"]).sqrt().to(vector.dtype)
        vector.sub_(step * exp_avg / (exp_avg_sq.sqrt() / scale + self.eps))

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Parameters and moments as they were in a copy of `state`."""
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
        moments = {
            f"{name}.{moment}": part
            for moment in ("exp_avg", "exp_avg_sq")
            for name, part in self.parts(self.state[moment]).items()
        }
        return moments | {name: self.state[name] for name in ("power1", "power2", "lr")}
