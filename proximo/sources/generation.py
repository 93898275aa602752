"""Completions of prompts: what a generator is, and three of them.

A `Generator` is any function (model, token, live, sampling, repeat, noise) -> Completions. `token` int64, `live` bool
[n, P] are prompts padded on the left, the last token of the prompt included; `repeat` completions are drawn of each, so
that there are N = n · repeat lanes; lane i · repeat + j is the j-th completion of prompt i. An engine of its own
(vLLM, SGLang) is adapted in three steps: hand it the live tokens of each prompt and the fields of `Sampling`; ask it
for the log-probability of each drawn token *after* temperature; give what comes back to `laid_out`. It must neither
force an EOS where the length ends nor take part of its settings from the model's folder.

Random numbers come from torch's global generator alone, or are `noise` [T, N] in [0, 1), which an engine may leave
aside: where noise decides what is drawn, completions do not depend on how many processes share them. The model
generates in evaluation mode, without dropout, and is put back into the mode it was in.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from proximo.decoder.cache import Cache
from proximo.decoder.transformer import Decoder, base_of, causal, ceil, hidden, knows, pass_through, positions, read
from proximo.errors import ConfigError, GenerationError
from proximo.sources.sampling import Sampling, distribution, draw

log = logging.getLogger("proximo")
LOOK = 8  # tokens after which finished lanes are looked for; on a GPU each look waits for it
PAGE = 32  # tokens in a block of continuous batching's memory
FULL = 0.75  # the share of lanes that are still written below which the others are dropped


class Completions(NamedTuple):
    """What was generated, [T, N] with T = `max_tokens`."""

    token: Tensor  # int64; `pad` after the end
    mask: Tensor  # bool: tokens that were drawn, the EOS included
    logp: Tensor  # float32, nats: of what was drawn, under what it was drawn from; 0 after the end


class Generator(Protocol):
    """Draws completions of prompts; see above."""

    def __call__(
        self,
        model: nn.Module,
        token: Tensor,
        live: Tensor,
        sampling: Sampling,
        repeat: int = 1,
        noise: Tensor | None = None,
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


def decode(
    model: nn.Module,
    token: Tensor,
    live: Tensor,
    sampling: Sampling,
    repeat: int = 1,
    noise: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Completions:
    """Our own decoder, for models that `decoder.transformer` knows: a `Generator`. Others go to `generate`: it says so.

    Prompts are read once for all of their completions, keys and values lie in memory that is allocated once, and
    lanes that have ended are dropped. With `dtype` bfloat16, products, keys and values are in bfloat16.
    """
    if not knows(model):
        tell_once(type(base_of(model)).__name__)
        return generate(model, token, live, sampling, repeat)
    check_prompts(model, token, live, sampling)
    lanes = len(token) * repeat
    noise = torch.rand(sampling.max_tokens, lanes, device=token.device) if noise is None else noise
    more = ceil(lanes) - lanes  # operations on single numbers have other kernels for what is left over
    with generating(model):
        decoder, kept = read(model, dtype), []
        last = hidden(decoder, token, positions(live), causal(live), kept=kept)[:, -1]
        owner = functional.pad(torch.arange(len(token), device=token.device).repeat_interleave(repeat), (0, more))
        cache = Cache(kept, live, owner, sampling.max_tokens)
        made = decoded(
            decoder, sampling, decoder.head(last)[owner], live.sum(1)[owner], cache, functional.pad(noise, (0, more))
        )
    return Completions(*(x[:, :lanes] for x in made))


@cache
def tell_once(kind: str) -> None:
    log.warning("%s is generated from by transformers: our own decoder does not know it", kind)


def decoded(
    decoder: Decoder, sampling: Sampling, logits: Tensor, position: Tensor, cache: Cache, noise: Tensor
) -> Completions:
    """Token after token, from logits [R, V] and positions [R] of the first; `noise` [T, R]."""
    (steps, rows), device = noise.shape, noise.device
    made = blank(steps, rows, sampling, device)
    eos = torch.tensor(sampling.eos, dtype=torch.long, device=device)
    here, writing = torch.arange(rows, device=device), torch.ones(rows, dtype=torch.bool, device=device)
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
            left = int(writing.sum())
            if not left:
                break
            if ceil(left) <= FULL * len(here):
                rest = writing.long().argsort(descending=True, stable=True)[: ceil(left)]
                cache.keep(rest)
                here, writing, chosen, position = (x[rest] for x in (here, writing, chosen, position))
        cache.advance()
        x = pass_through(decoder, chosen[:, None], position[:, None], cache.attend)
        logits, position = decoder.head(x[:, 0]), position + 1
    return made


def blank(steps: int, lanes: int, sampling: Sampling, device: torch.device) -> Completions:
    """Completions without a token."""
    token = torch.full((steps, lanes), sampling.pad, device=device)
    return Completions(token, torch.zeros_like(token, dtype=torch.bool), torch.zeros(steps, lanes, device=device))


def generate(
    model: nn.Module, token: Tensor, live: Tensor, sampling: Sampling, repeat: int = 1, noise: Tensor | None = None
) -> Completions:
    """transformers' own `generate`, for any causal language model: a `Generator`.

    The model's own generation settings (its folder's generation_config.json) are put aside: a repetition penalty or a
    forced token in there would be in what is drawn and not in what is learned.
    """
    check_prompts(model, token, live, sampling)
    settings = settings_of(sampling, return_dict_in_generate=True, output_scores=True)
    lanes = [x.repeat_interleave(repeat, 0) for x in (token, live)]
    with generating(model), without_settings(model) as base:
        made = base.generate(lanes[0], attention_mask=lanes[1].long(), generation_config=settings)
    found = made.sequences[:, token.shape[1] :].t()
    logp = torch.stack(
        [
            scores.float().log_softmax(-1).gather(-1, chosen[:, None])[:, 0]
            for scores, chosen in zip(made.scores, found, strict=True)
        ]
    )
    return laid_out(found, logp * bool(sampling.temperature), sampling)


def continuous(
    model: nn.Module, token: Tensor, live: Tensor, sampling: Sampling, repeat: int = 1, noise: Tensor | None = None
) -> Completions:
    """transformers' continuous batching, which admits a prompt as soon as a completion has ended: a `Generator`.

    Its memory is what the lanes need at most: left to itself it takes most of the machine's.
    It knows no least length.
    """
    check_prompts(model, token, live, sampling)
    if sampling.min_tokens:
        raise ConfigError("continuous batching knows no min_tokens: set it to 0, or generate otherwise")
    from transformers import ContinuousBatchingConfig

    texts = [row[alive].tolist() for row, alive in zip(token, live, strict=True) for _ in range(repeat)]
    pages = -(-(token.shape[1] + sampling.max_tokens) // PAGE) + 1
    page = "page_size" if hasattr(ContinuousBatchingConfig, "page_size") else "block_size"  # as it was called before
    room: dict[str, Any] = {page: PAGE, "num_blocks": len(texts) * pages}
    memory = ContinuousBatchingConfig(
        max_batch_tokens=max(token.shape[1], len(texts), PAGE), return_logprobs=True, use_cuda_graph=False, **room
    )
    with generating(model), without_settings(model) as base:
        answers = base.generate_batch(
            texts, generation_config=settings_of(sampling), continuous_batching_config=memory, warmup=False
        )
    failed = [answer.error for answer in answers.values() if answer.error is not None]
    if failed or len(answers) != len(texts):
        why = failed[0] if failed else "the reason is in its log"
        raise GenerationError(f"continuous batching completed {len(answers)} of {len(texts)} prompts: {why}")
    made = blank(sampling.max_tokens, len(texts), sampling, torch.device("cpu"))
    for lane, answer in enumerate(answers.values()):
        made.token[: len(answer.generated_tokens), lane] = torch.tensor(answer.generated_tokens)
        made.logp[: len(answer.logprobs), lane] = torch.tensor(answer.logprobs)
    return laid_out(made.token.to(token.device), made.logp.to(token.device) * bool(sampling.temperature), sampling)


def settings_of(sampling: Sampling, **more: Any) -> Any:
    """transformers' words for it."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=sampling.max_tokens,
        min_new_tokens=sampling.min_tokens or None,
        do_sample=sampling.temperature > 0,
        temperature=sampling.temperature or 1.0,
        top_k=sampling.top_k or 0,
        top_p=1.0 if sampling.top_p is None else sampling.top_p,
        eos_token_id=list(sampling.eos) or None,
        pad_token_id=sampling.pad,
        **more,
    )


@contextmanager
def without_settings(model: nn.Module) -> Iterator[Any]:
    """The model within adapters' wrapper, its own generation settings put aside."""
    from transformers import GenerationConfig

    base = base_of(model)
    own = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        yield base
    finally:
        base.generation_config = own


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
            x = hidden(decoder, whole, positions(seen), causal(seen), width)[:, width - 1 :]
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
    """Our own decoder ("static") in this precision, transformers' generate, or its continuous batching."""
    dtype = torch.bfloat16 if precision == "bfloat16" else None
    return {"static": partial(decode, dtype=dtype), "transformers": generate, "continuous": continuous}[name]
