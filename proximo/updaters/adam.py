"""Adam over a policy's parameters as one vector."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from proximo.updaters.optimizer import Optimizer

MANY = 2.0**24  # steps after which nothing is left to correct


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980, Algorithm 1), AdamW with `weight_decay` (Loshchilov & Hutter 2019).

    The decay is decoupled (arXiv:1711.05101, Algorithm 2): θ ← (1 − lr · weight_decay) θ, of all parameters.
    `epsilon_hat` takes eps for the ε̂ of the paper's section 2, which is added before the bias of the second moment is
    corrected, as TensorFlow does; early steps are then shorter.
    """

    def __init__(
        self,
        policy: Any,
        lr: float = 0.0,
        eps: float = 1e-8,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        epsilon_hat: bool = False,
    ) -> None:
        super().__init__(policy, lr)
        self.eps, self.betas, self.weight_decay, self.epsilon_hat = eps, betas, weight_decay, epsilon_hat
        vector = self.state["vector"]
        self.state = self.state | {
            "exp_avg": torch.zeros_like(vector),
            "exp_avg_sq": torch.zeros_like(vector),
            # β₁ᵗ and β₂ᵗ, kept as products: a power would be taken anew for every few parameters of a compiled step
            "power1": torch.ones((), dtype=torch.float64, device=vector.device),
            "power2": torch.ones((), dtype=torch.float64, device=vector.device),
        }

    def descend(self, gradient: Tensor, state: dict[str, Tensor]) -> None:
        beta1, beta2 = self.betas
        vector, exp_avg, exp_avg_sq = state["vector"], state["exp_avg"], state["exp_avg_sq"]
        if state is self.state and vector.device.type == "cpu" and not self.epsilon_hat:
            self.fused(gradient)
            return
        state["power1"].mul_(beta1)
        state["power2"].mul_(beta2)
        exp_avg.lerp_(gradient, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        step = (state["lr"] / (1 - state["power1"])).to(vector.dtype)
        scale = (1 - state["power2"]).sqrt().to(vector.dtype)
        if self.weight_decay:
            vector.mul_((1 - state["lr"] * self.weight_decay).to(vector.dtype))
        if self.epsilon_hat:
            vector.sub_(step * scale * exp_avg / (exp_avg_sq.sqrt() + self.eps))
        else:
            vector.sub_(step * exp_avg / (exp_avg_sq.sqrt() / scale + self.eps))

    def fused(self, gradient: Tensor) -> None:
        """The same in one pass over memory, as a graph has it anyway: a fifth of the time for large networks."""
        state, (beta1, beta2) = self.state, self.betas
        steps = state["vector"].new_tensor(self.taken(), dtype=torch.float32)
        state["power1"].mul_(beta1)
        state["power2"].mul_(beta2)
        adamw(
            [state["vector"]], [gradient], [state["exp_avg"]], [state["exp_avg_sq"]], [], [steps], fused=True,
            amsgrad=False, beta1=beta1, beta2=beta2, lr=self.lr, weight_decay=self.weight_decay, eps=self.eps,
            maximize=False,
        )  # fmt: skip

    def taken(self) -> float:
        """How many steps were taken: log_β βᵗ."""
        beta, power = max(zip(self.betas, (self.state["power1"].item(), self.state["power2"].item()), strict=True))
        return round(math.log(power) / math.log(beta)) if beta > 0 and power > 0 else MANY * (power < 1)
