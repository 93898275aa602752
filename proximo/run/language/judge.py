"""Evaluation of language models on examples that were held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from proximo.batch import Batch
from proximo.models.language.policy import in_pieces
from proximo.preferences import implicit_margin, last_live
from proximo.reference import lane_kl
from proximo.rewards import Reward, scores
from proximo.run.plan import Judge
from proximo.run.seeding import EVALUATION, borrowed_generators, derived, seed_all
from proximo.sources.text.examples import Example
from proximo.sources.texts import TextSource
from proximo.sources.tokens import TokenSource, told

SHOWN = 16  # samples that are kept of an evaluation


@dataclass(frozen=True)
class LanguageScore:
    """What an evaluation found: a number for each example, what else there is to say, and samples."""

    returns: list[float]
    lengths: list[int]
    more: dict[str, float] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    counted: str = "prompts"

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        return float(np.std(self.returns))

    def row(self) -> dict[str, Any]:
        summary = {"return_mean": self.mean, "return_std": self.std, "length_mean": float(np.mean(self.lengths))}
        return {**summary, **self.more, "episodes": len(self.returns), "returns": self.returns}


def completing(
    source: TokenSource, policy: Any, examples: Sequence[Example], seed: int, gold: Reward | None = None
) -> Judge:
    """Completes prompts as while training, from random numbers of its own: rewards, and how far from the reference.

    `gold` is a reward that is measured beside, and not learned from.
    """

    def judge(stop: Callable[[], bool]) -> LanguageScore | None:
        with borrowed_generators():
            seed_all(derived(seed, EVALUATION, 0))
            batch, texts = source.rewarded(policy, examples, 1)
        likeliest = source.sampling.temperature == 0  # drawn from nothing that could be far from the reference
        rewards, kl = batch.reward.sum(0), None if likeliest or "ref_logp" not in vars(batch) else lane_kl(batch)
        far: list[float | None] = [None] * len(texts) if kl is None else kl.tolist()
        rows = zip(examples, texts, rewards.tolist(), far, strict=True)
        samples = [dict(prompt=each.text, completion=text, reward=r, kl=d) for each, text, r, d in rows][:SHOWN]
        more = {} if kl is None else {"kl_ref": kl.mean().item()}
        more["ended"] = batch.ended.any(0).float().mean().item()
        if gold is not None:
            found = scores(gold, [each.text for each in examples], texts, told(examples, batch), "gold")
            more["gold"] = float(np.mean(found))
        return LanguageScore(rewards.tolist(), batch.mask.sum(0).tolist(), more, samples)

    return judge


def reading(source: TextSource, policy: Any, examples: Sequence[Example]) -> Judge:
    """How likely held-out texts are: mean log-probability a token of each, and the perplexity over all tokens.

    The `source` lays a text in a lane of its own.
    """

    def judge(stop: Callable[[], bool]) -> LanguageScore | None:
        def of(part: Batch) -> torch.Tensor:
            return policy.evaluate(part).logp

        logps, lengths = list[float](), list[int]()
        for i in range(0, len(examples), source.count):
            batch = source.batch(policy, examples[i : i + source.count])
            logp = torch.where(batch.mask, in_pieces(batch, source.at_once, of, policy.vocabulary), 0)
            logps += logp.sum(0).tolist()
            lengths += batch.mask.sum(0).tolist()
        total = sum(logps) / sum(lengths)
        return LanguageScore(
            [logp / length for logp, length in zip(logps, lengths, strict=True)],
            lengths,
            {"loss": -total, "perplexity": float(np.exp(-total))},
            counted="texts",
        )

    return judge


def preferring(source: TextSource, policy: Any, examples: Sequence[Example], beta: float | None) -> Judge:
    """Whether the chosen of held-out pairs is preferred: by the reward, or where there is β by DPO's implicit one."""

    def margin(part: Batch) -> torch.Tensor:
        if beta is not None:
            return beta * implicit_margin(policy.evaluate(part), part)[None]
        sides = last_live(policy.evaluate(part).value, part.mask)
        return (sides[:, 0] - sides[:, 1])[None]

    def judge(stop: Callable[[], bool]) -> LanguageScore | None:
        found = list[float]()
        for i in range(0, len(examples), source.count):
            batch = source.batch(policy, examples[i : i + source.count])
            found += in_pieces(batch, source.at_once, margin, policy.vocabulary)[0].tolist()
        right = [float(x > 0) for x in found]
        more = {"accuracy": float(np.mean(right)), "margin": float(np.mean(found))}
        return LanguageScore(right, [1] * len(right), more, counted="pairs")

    return judge
