"""Adam over a policy's parameters as one vector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proximo.errors import ConfigError


class Adam:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980, Algorithm 1).

    The policy's trainable parameters become views of one vector [P], so that an update is arithmetic on a few tensors,
    which `state` holds by name. They all stay the same tensors and are changed in place.
    """

    def __init__(self, policy: Any, lr: float = 0.0, eps: float = 1e-8, betas: tuple[float, float] = (0.9, 0.999)):
        named = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
        self.shapes = {name: parameter.shape for name, parameter in named.items()}
        self.eps, self.betas = eps, betas
        vector = torch.cat([parameter.detach().reshape(-1) for parameter in named.values()])
        self.state = {
            "vector": vector,
            "exp_avg": torch.zeros_like(vector),
            "exp_avg_sq": torch.zeros_like(vector),
            # β₁ᵗ and β₂ᵗ, kept as products: a power would be taken anew for every few parameters of a compiled step
            "power1": torch.ones((), dtype=torch.float64, device=vector.device),
            "power2": torch.ones((), dtype=torch.float64, device=vector.device),
            "lr": torch.tensor(lr, dtype=torch.float64, device=vector.device),
        }
        for name, part in self.parts(vector).items():
            named[name].data = part
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
