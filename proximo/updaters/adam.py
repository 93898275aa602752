"""Adam, with its learning rate as an attribute and its state as named tensors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Adam(torch.optim.Adam):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980) over named parameters, in one fused kernel.

    `state_tensors` names its moments by parameter, so that saving needs no pickle.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        lr: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        self.named = dict(parameters)
        super().__init__(self.named.values(), lr=lr, eps=eps, fused=True)
        for parameter in self.named.values():
            self.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    @property
    def lr(self) -> float:
        return self.param_groups[0]["lr"]

    @lr.setter
    def lr(self, lr: float) -> None:
        self.param_groups[0]["lr"] = lr

    def state_tensors(self) -> dict[str, Tensor]:
        """The live tensors, as {"parameter.exp_avg": …}."""
        return {f"{name}.{key}": t for name, p in self.named.items() for key, t in self.state[p].items()}
