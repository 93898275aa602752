"""How tokens are drawn, and from which distribution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proximo.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    `top_k`, `top_p` and `min_tokens` change the distribution that is drawn from, and `Completions.logp` with it: it is
    renormalised over what they leave. A learner's log-probabilities are those of the whole vocabulary, so that its
    ratios no longer begin at 1 and its KL to the reference may be negative. So they are off unless they are asked for,
    and for learning they should stay off.
    """

    max_tokens: int
    """Tokens of a completion at most, its EOS included; none is forced at the end."""
    temperature: float = 1.0
    """What logits are divided by; 0 takes the most likely token, with log-probability 0."""
    top_k: int | None = None
    """Draw from so many most likely tokens alone."""
    top_p: float | None = None
    """Draw from the fewest most likely tokens whose probabilities add up to this."""
    eos: tuple[int, ...] = ()
    """Tokens that end a completion."""
    pad: int = 0
    """What stands after the end; no token of `eos`."""
    min_tokens: int = 0
    """Tokens before the first that may be an EOS."""

    def __post_init__(self) -> None:
        checks = {
            "max_tokens must be 1 or more": self.max_tokens >= 1,
            "temperature must be 0 or more": 0 <= self.temperature < float("inf"),
            "top_k must be 1 or more": self.top_k is None or self.top_k >= 1,
            "top_p must lie above 0 and not above 1": self.top_p is None or 0 < self.top_p <= 1,
            "min_tokens must lie between 0 and max_tokens": 0 <= self.min_tokens <= self.max_tokens,
            "pad must be no token that ends a completion": self.pad not in self.eos,
        }
        for what, holds in checks.items():
            if not holds:
                raise ConfigError(f"{what}: {self}")


def distribution(logits: Tensor, sampling: Sampling, at: int) -> Tensor:
    """Log-probabilities [N, V] of what token number `at` is drawn from, given logits [N, V]."""
    logits = logits.float() / (sampling.temperature or 1.0)
    if at < sampling.min_tokens and sampling.eos:
        logits = logits.index_fill(-1, torch.tensor(sampling.eos, device=logits.device), -torch.inf)
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = logits.sort(descending=True)
        share = ordered.softmax(-1)
        beyond = share.cumsum(-1) - share >= sampling.top_p  # what stands before it is enough already
        logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    return logits.log_softmax(-1)


def draw(logp_all: Tensor, noise: Tensor) -> Tensor:
    """Tokens [N] from log-probabilities [N, V], by inverting their distribution function at `noise` [N] in [0, 1)."""
    sums = logp_all.exp().cumsum(-1)
    total = sums[:, -1:]
    place = torch.minimum(noise[:, None] * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(sums, place, right=True)[:, 0]
