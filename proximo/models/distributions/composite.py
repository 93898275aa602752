"""Tuple and Dict action spaces of any depth: several distributions at once, independent given the observation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Parts = dict[Any, Any] | tuple[Any, ...]


def each(f: Callable[..., Any], parts: Parts, *others: Any) -> Parts:
    """`f(part, other part, …)` for every part of a dict or tuple; the others have the same keys or places."""
    if isinstance(parts, dict):
        return {key: f(part, *(other[key] for other in others)) for key, part in parts.items()}
    return tuple(f(*some) for some in zip(parts, *others, strict=True))


def total(f: Callable[..., Tensor], parts: Parts, *others: Any) -> Tensor:
    """The sum of `each`, in the order of the parts."""
    terms = each(f, parts, *others)
    return torch.stack(list(terms.values() if isinstance(terms, dict) else terms)).sum(0)


class Composite(NamedTuple):
    """Independent parts, a dict or a tuple of distributions, composites among them.

    Actions and noise are dicts or tuples alike; log-probability, entropy and KL are sums over the parts.
    """

    parts: Parts

    def sample(self, noise: Any) -> Any:
        return each(lambda part, drawn: part.sample(drawn), self.parts, noise)

    def mode(self) -> Any:
        return each(lambda part: part.mode(), self.parts)

    def logp(self, action: Any) -> Tensor:
        return total(lambda part, chosen: part.logp(chosen), self.parts, action)

    def entropy(self) -> Tensor:
        return total(lambda part: part.entropy(), self.parts)

    def slope(self) -> Tensor | float:
        """That of the parts which have one, together."""
        parts = self.parts.values() if isinstance(self.parts, dict) else self.parts
        return sum(part.slope() for part in parts if hasattr(part, "slope"))

    def kl(self, other: Composite) -> Tensor:
        return total(lambda part, another: part.kl(another), self.parts, other.parts)


class CompositeHead(nn.Module):
    """Tuple and Dict: a head for every part, each with its piece of the outputs, in the space's order.

    A mask has the options of all choices in a row, part after part; parts without choices have none in it.
    """

    def __init__(self, heads: Parts) -> None:
        super().__init__()
        self.keys = tuple(heads) if isinstance(heads, dict) else None
        self.heads = nn.ModuleList(heads.values() if isinstance(heads, dict) else heads)  # a key may be any string
        self.sizes: list[int] = [head.outputs for head in self.heads]  # type: ignore[misc]
        self.outputs = sum(self.sizes)
        self.masks: list[int] = [getattr(head, "options", 0) for head in self.heads]  # type: ignore[misc]
        self.options = sum(self.masks)

    def forward(self, outputs: Tensor, allowed: Tensor | None = None) -> Composite:
        """From outputs [..., outputs]; `allowed` [..., options] is a mask of the options of all choices."""
        heads, pieces = self.named(self.heads), self.named(outputs.split(self.sizes, -1))
        masks = [None] * len(self.masks) if allowed is None else allowed.split(self.masks, -1)
        return Composite(each(part_of, heads, pieces, self.named(masks)))

    def noise(self, *shape: int, device: torch.device) -> Any:
        return each(lambda head: head.noise(*shape, device=device), self.named(self.heads))

    def to_env(self, action: Any) -> Any:
        """A dict or tuple of [N, ...], which is what Gymnasium's vector environments take."""
        return each(lambda head, chosen: head.to_env(chosen), self.named(self.heads), action)

    def named(self, values: Iterable[Any]) -> Parts:
        """One value a part, as a dict or tuple like the space."""
        return tuple(values) if self.keys is None else dict(zip(self.keys, values, strict=True))


def part_of(head: Any, outputs: Tensor, allowed: Tensor | None) -> Any:
    """A part's distribution; heads without choices take no mask."""
    return head(outputs) if allowed is None or allowed.shape[-1] == 0 else head(outputs, allowed)
