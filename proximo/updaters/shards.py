"""An optimizer's vector where parameters are sharded: of each rank what it holds, so that steps need no other ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from proximo import ranks


class Shards:
    """A policy's parameters, some of them shards, which keep memory of their own beside their parts of a vector [P]."""

    def __init__(self, parameters: list[nn.Parameter], vector: Tensor) -> None:
        self.parameters, self.vector = parameters, vector
        sizes = [ranks.local(p).numel() for p in parameters]
        self.pieces = [(p, x) for p, x in zip(parameters, vector.split(sizes), strict=True) if ranks.is_sharded(p)]
        shared = [torch.full((n,), not ranks.is_sharded(p)) for p, n in zip(parameters, sizes, strict=True)]
        self.replicated = torch.cat(shared).to(vector.device)  # bool [P]: all ranks hold the same number there

    @torch.no_grad()
    def take(self) -> None:
        """Write the parameters into the vector."""
        for parameter, piece in self.pieces:
            piece.copy_(ranks.local(parameter).reshape(-1))

    @torch.no_grad()
    def spread(self) -> None:
        """Write the vector into the parameters."""
        for parameter, piece in self.pieces:
            ranks.local(parameter).copy_(piece.view_as(ranks.local(parameter)))

    def gradient(self, loss: Tensor) -> Tensor:
        """[P], of sharded parameters summed over ranks, of the others this rank's own."""
        loss.backward()
        found = []
        for parameter in self.parameters:
            gradient, parameter.grad = parameter.grad, None
            found.append(torch.zeros_like(parameter) if gradient is None else gradient)
        return torch.cat([ranks.local(each).reshape(-1) for each in found])

    def summed(self, gradient: Tensor) -> Tensor:
        """The gradient with the others summed over ranks too."""
        gradient[self.replicated] = ranks.summed(gradient[self.replicated])
        return gradient

    def total(self, x: Tensor) -> Tensor:
        """The sum over all parameters of numbers [P]."""
        return ranks.summed(x[~self.replicated].sum()) + x[self.replicated].sum()
