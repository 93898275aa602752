"""Judges of benchmarks/rlhf.py: completions of a run with their reward, gold and KL; a reward model on pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rlhf_gold import gold

from proximo import language
from proximo.reference import lane_kl
from proximo.run.language.build import reward_model
from proximo.run.language.speaker import ModelReward
from proximo.sources.sampling import Sampling
from proximo.sources.text.examples import Example, ids
from proximo.sources.text.loader import Loader
from proximo.sources.tokens import TokenSource


class Sampled(NamedTuple):
    """Completions, N of them, and what is known of each."""

    prompts: list[str]
    texts: list[str]
    proxy: np.ndarray
    kl: np.ndarray  # Σ log π − log π_ref, nats; nought where there is no reference
    length: np.ndarray
    ended: np.ndarray

    @property
    def gold(self) -> np.ndarray:
        return np.array(gold(self.prompts, self.texts))


def sampled(run: Path, prompts: list[str], each: int, max_tokens: int, seed: int, proxy: Path | None = None) -> Sampled:
    """So many completions of each prompt, by the model of a run; with what a reward model says of them."""
    speaker = language.load(run)
    words = speaker.words
    judge: Any = nothing if proxy is None else ModelReward(*reward_model(proxy), words.tokenizer)
    asked = [Example(ids(*speaker.tokens(prompt)), (), prompt, {}) for prompt in prompts]
    sampling = Sampling(max_tokens, eos=(words.eos,), pad=words.pad)
    source = TokenSource(Loader(asked, 0), speaker.generator, sampling, judge, words.decode, len(asked), each, 256)
    torch.manual_seed(seed)
    parts = []
    for i in range(0, len(asked), max(1, 512 // each)):
        some = asked[i : i + max(1, 512 // each)]
        batch, texts = source.rewarded(speaker.policy, some, each)
        apart = lane_kl(batch) if "ref_logp" in vars(batch) else torch.zeros(len(texts))
        numbers = (batch.reward.sum(0), apart, batch.mask.sum(0), batch.ended.any(0))
        parts.append((texts, *(x.numpy() for x in numbers)))
    texts, *numbers = zip(*parts, strict=True)
    again = [prompt for prompt in prompts for _ in range(each)]
    return Sampled(again, [text for part in texts for text in part], *(np.concatenate(x) for x in numbers))


def nothing(prompts: list[str], completions: list[str]) -> list[float]:
    return [0.0] * len(prompts)


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def right(held: list[dict[str, str]], judge: Callable[[list[str], list[str]], Any]) -> float:
    """The share of pairs whose chosen completion a judge finds better."""
    prompts = [pair["prompt"] for pair in held]
    chosen, rejected = (np.array(judge(prompts, [pair[side] for pair in held])) for side in ("chosen", "rejected"))
    return float(np.mean((chosen > rejected) + 0.5 * (chosen == rejected)))


def scorer(run: Path) -> Callable[[list[str], list[str]], list[float]]:
    """A reward model's judgement of texts that came to their end."""
    model, words = reward_model(run)
    judge = ModelReward(model, words, words.tokenizer)

    def scored(prompts: list[str], texts: list[str]) -> list[float]:
        asked = [words.tokenizer(prompt)["input_ids"] for prompt in prompts]
        return judge.scores(asked, [judge.answer(text, True) for text in texts])

    return scored
