"""RMSProp over a policy's parameters as one vector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from proximo.updaters.optimizer import Optimizer


class RMSProp(Optimizer):
    """RMSProp (Tieleman & Hinton 2012, lecture 6.5), ε outside the root as in torch."""

    def __init__(self, policy: Any, lr: float = 0.0, eps: float = 1e-8, alpha: float = 0.99) -> None:
        super().__init__(policy, lr)
        self.eps, self.alpha = eps, alpha
        self.state["square_avg"] = torch.zeros_like(self.state["vector"])

    def descend(self, gradient: Tensor, state: dict[str, Tensor]) -> None:
        vector, square_avg = state["vector"], state["square_avg"]
        square_avg.mul_(self.alpha).addcmul_(gradient, gradient, value=1 - self.alpha)
        vector.sub_(state["lr"].to(vector.dtype) * gradient / (square_avg.sqrt() + self.eps))
