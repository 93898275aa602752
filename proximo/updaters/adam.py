"""Adam over a policy's parameters as one vector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proximo.updaters.optimizer import Optimizer


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980, Algorithm 1)."""

    def __init__(self, policy: Any, lr: float = 0.0, eps: float = 1e-8, betas: tuple[float, float] = (0.9, 0.999)):
        super().__init__(policy, lr)
        self.eps, self.betas = eps, betas
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
        state["power1"].mul_(beta1)
        state["power2"].mul_(beta2)
        exp_avg.lerp_(gradient, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        step = (state["lr"] / (1 - state["power1"])).to(vector.dtype)
        scale = (1 - state["power2"]).sqrt().to(vector.dtype)
        vector.sub_(step * exp_avg / (exp_avg_sq.sqrt() / scale + self.eps))
