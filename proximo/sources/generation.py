"""Completions of prompts: what a generator is, and three of them.

A `Generator` is any function (model, token, live, sampling, repeat) -> Completions. `token` int64 and `live` bool [n, P]
are prompts padded on the left, the last token of the prompt included; `repeat` completions are drawn of each, so that
there are N = n · repeat lanes, of which lane i · repeat + j is the j-th completion of prompt i. An engine of its own
(vLLM, SGLang) is adapted in three steps: hand it the live tokens of each prompt and the fields of `Sampling`; ask it for
the log-probability of each drawn token *after* temperature; lay out what comes back as `Completions`. It must neither
force an EOS where the length ends nor take part of its settings from the model's folder.

Random numbers come from torch's global generator alone. The model generates in evaluation mode, without dropout, and
is put back into the mode it was in.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from proximo.errors import ConfigError
from proximo.models.decoder import (
    LOWEST,
    Cache,
    Decoder,
    base_of,
    causal,
    ceil,
    hidden,
    knows,
    pass_through,
    positions,
    read,
)

log = logging.getLogger("proximo")
LOOK = 8  # tokens after which finished lanes are looked for; on a GPU each look waits for it
FULL = 0.75  # the share of lanes that are still written below which the others are dropped


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


class Completions(NamedTuple):
    """What was generated, [T, N] with T = `max_tokens`."""

    token: Tensor  # int64; `pad` after the end
    mask: Tensor  # bool: tokens that were drawn, the EOS included
    logp: Tensor  # float32, nats: of what was drawn, under what it was drawn from; 0 after the end


class Generator(Protocol):
    """Draws completions of prompts; see above."""

    def __call__(
        self, model: nn.Module, token: Tensor, live: Tensor, sampling: Sampling, repeat: int = 1
    ) -> Completions: ...


@contextmanager
def generating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def check_prompts(model: nn.Module, token: Tensor, live: Tensor, sampling: Sampling) -> None:
    """ConfigError where prompts are empty, not padded on the left, or leave no place for a completion."""
    if token.shape != live.shape or token.dim() != 2 or 0 in token.shape:
        raise ConfigError(f"prompts must be [n, P], not empty: tokens are {[*token.shape]}, live {[*live.shape]}")
    if not bool(live[:, -1].all()) or bool((live[:, :-1] & ~live[:, 1:]).any()):
        raise ConfigError("prompts must be padded on the left: each must end with a live token and have no gaps")
    longest = int(live.sum(1).max())
    room = getattr(base_of(model).config, "max_position_embeddings", None)
    if room is not None and longest + sampling.max_tokens > room:
        raise ConfigError(
            f"a prompt of {longest} tokens and {sampling.max_tokens} new ones do not fit into the model's context of "
            f"{room}: shorten the prompts or max_tokens"
        )


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


def decode(
    model: nn.Module,
    token: Tensor,
    live: Tensor,
    sampling: Sampling,
    repeat: int = 1,
    dtype: torch.dtype | None = None,
) -> Completions:
    """Our own decoder, for the models that `models.decoder` knows: a `Generator`. Others go to `generate`, which it says.

    Prompts are read once for all of their completions, keys and values lie in memory that is allocated once, and
    lanes that have ended are dropped. With `dtype` bfloat16, products, keys and values are in bfloat16.
    """
    if not knows(model):
        log.warning("%s is generated from by transformers: our own decoder does not know it", type(model).__name__)
        return generate(model, token, live, sampling, repeat)
    check_prompts(model, token, live, sampling)
    with generating(model):
        decoder = read(model, dtype)
        logits, cache, bias = prefill(decoder, token, live, sampling.max_tokens, repeat)
        position = live.sum(1).repeat_interleave(repeat)
        return decoded(decoder, sampling, logits, position, cache, bias, token.shape[1])


def prefill(decoder: Decoder, token: Tensor, live: Tensor, more: int, repeat: int) -> tuple[Tensor, Cache, Tensor]:
    """Read the prompts: logits [N, V] of the next tokens, a cache with room for `more`, and its bias [N, 1, 1, S]."""
    prompts, width = token.shape
    with torch.no_grad():
        block = decoder.blocks[0]
        k = block.project(block.norm(decoder.embed(token[:1, :1], token[:1, :1] * 0)))[1]
    shape = len(decoder.blocks), prompts, k.shape[2], ceil(width), k.shape[3]
    read_once = Cache(k.new_zeros(shape), k.new_zeros(shape))
    last = hidden(decoder, token, positions(live), causal(live), read_once)[:, -1]
    logits = decoder.head(last).repeat_interleave(repeat, 0)
    grown = ceil(width + more) - ceil(width)
    cache = Cache(*(functional.pad(x, (0, 0, 0, grown)).repeat_interleave(repeat, 1) for x in read_once))
    bias = torch.full((prompts, 1, 1, cache.keys.shape[3]), LOWEST, device=token.device)
    bias[:, 0, 0, :width].masked_fill_(live, 0.0)
    return logits, cache, bias.repeat_interleave(repeat, 0)


def decoded(
    decoder: Decoder,
    sampling: Sampling,
    logits: Tensor,
    position: Tensor,
    cache: Cache,
    bias: Tensor,
    width: int,
) -> Completions:
    """Token after token, from what `prefill` gave; `position` [N] is that of the first new token."""
    steps, lanes, device = sampling.max_tokens, logits.shape[0], logits.device
    noise = torch.rand(steps, lanes, device=device)
    made = blank(steps, lanes, sampling, device)
    eos = torch.tensor(sampling.eos, dtype=torch.long, device=device)
    here, writing = torch.arange(lanes, device=device), torch.ones(lanes, dtype=torch.bool, device=device)
    for t in range(steps):
        logp_all = distribution(logits, sampling, t)
        chosen = draw(logp_all, noise[t, here]) if sampling.temperature else logp_all.argmax(-1)
        logp = logp_all.gather(-1, chosen[:, None])[:, 0] * bool(sampling.temperature)
        made.token[t, here] = chosen.where(writing, sampling.pad)
        made.mask[t, here] = writing
        made.logp[t, here] = logp.where(writing, 0.0)
        writing = writing & ~torch.isin(chosen, eos)
        if t + 1 == steps:
            break
        if t % LOOK == LOOK - 1:
            left = writing.nonzero()[:, 0]
            if not len(left):
                break
            if len(left) <= FULL * len(here):
                cache = cache.take(left)
                here, writing, chosen, position, bias = (x[left] for x in (here, writing, chosen, position, bias))
        bias[..., width + t] = 0.0
        seen = bias[..., : ceil(width + t + 1)]
        x = pass_through(decoder, chosen[:, None], position[:, None], seen, cache, width + t)
        logits, position = decoder.head(x[:, 0]), position + 1
    return made


def blank(steps: int, lanes: int, sampling: Sampling, device: torch.device) -> Completions:
    """Completions without a token."""
    token = torch.full((steps, lanes), sampling.pad, device=device)
    return Completions(token, torch.zeros_like(token, dtype=torch.bool), torch.zeros(steps, lanes, device=device))


def generate(model: nn.Module, token: Tensor, live: Tensor, sampling: Sampling, repeat: int = 1) -> Completions:
    """transformers' own `generate`, for any causal language model: a `Generator`.

    The model's own generation settings (its folder's generation_config.json) are put aside: a repetition penalty or a
    forced token in there would be in what is drawn and not in what is learned.
    """
    check_prompts(model, token, live, sampling)
    from transformers import GenerationConfig

    settings = GenerationConfig(
        max_new_tokens=sampling.max_tokens,
        min_new_tokens=sampling.min_tokens or None,
        do_sample=sampling.temperature > 0,
        temperature=sampling.temperature or 1.0,
        top_k=sampling.top_k or 0,
        top_p=1.0 if sampling.top_p is None else sampling.top_p,
        eos_token_id=list(sampling.eos) or None,
        pad_token_id=sampling.pad,
        return_dict_in_generate=True,
        output_scores=True,
    )
    lanes = [x.repeat_interleave(repeat, 0) for x in (token, live)]
    base = base_of(model)
    own = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        with generating(model):
            made: Any = base.generate(lanes[0], attention_mask=lanes[1].long(), generation_config=settings)
    finally:
        base.generation_config = own
    found = made.sequences[:, token.shape[1] :].t()
    logp = torch.stack(
        [
            scores.float().log_softmax(-1).gather(-1, chosen[:, None])[:, 0]
            for scores, chosen in zip(made.scores, found, strict=True)
        ]
    )
    return laid_out(found, logp * bool(sampling.temperature), sampling)


def laid_out(found: Tensor, logp: Tensor, sampling: Sampling) -> Completions:
    """What an engine drew, [T' ≤ T, N], as completions: masked after the first EOS."""
    made = blank(sampling.max_tokens, found.shape[1], sampling, found.device)
    ends = torch.isin(found, torch.tensor(sampling.eos, dtype=torch.long, device=found.device))
    before = ends.cumsum(0) - ends.long() == 0
    made.token[: len(found)] = found.where(before, sampling.pad)
    made.mask[: len(found)] = before
    made.logp[: len(found)] = logp.where(before, 0.0)
    return made


def learned_logp(
    model: nn.Module, token: Tensor, live: Tensor, made: Completions, sampling: Sampling, repeat: int = 1
) -> Tensor:
    """Log-probabilities [T, N] of completions as a learner sees them: whole sequences in one pass."""
    steps, width = made.token.shape[0], token.shape[1]
    whole = torch.cat((token.repeat_interleave(repeat, 0), made.token.t()), 1)[:, :-1]
    seen = torch.cat((live.repeat_interleave(repeat, 0), made.mask.t()), 1)[:, :-1]
    with generating(model):
        if knows(model):
            decoder = read(model)
            x = hidden(decoder, whole, positions(seen), causal(seen))[:, width - 1 :]
            logits = decoder.head(x)
        else:
            out: Any = base_of(model)(whole, attention_mask=seen.long(), position_ids=positions(seen), use_cache=False)
            logits = out.logits[:, width - 1 :]
    logp = (logits.float() / sampling.temperature).log_softmax(-1)
    return logp.gather(-1, made.token.t()[..., None])[..., 0].t().reshape(steps, -1)


def agreement(
    generator: Generator, model: nn.Module, token: Tensor, live: Tensor, sampling: Sampling, repeat: int = 1
) -> float:
    """max |logp of the generator − logp of the learner| over the tokens of fresh completions, nats.

    Only temperature counts: whatever else narrows what is drawn from is no difference between the two.
    """
    plain = replace(sampling, top_k=None, top_p=None, min_tokens=0)
    made = generator(model, token, live, plain, repeat)
    learned = learned_logp(model, token, live, made, plain, repeat)
    return float((made.logp - learned)[made.mask].abs().max())


def generator_named(name: str, precision: str = "float32") -> Generator:
    """ "static": our own decoder, in this precision; "transformers": its generate."""
    dtype = torch.bfloat16 if precision == "bfloat16" else None
    return generate if name == "transformers" else partial(decode, dtype=dtype)
