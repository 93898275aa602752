"""Asking a trained model: completions on demand, and how good they are on prompts it did not learn from."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from proximo.algorithms.language import language_algorithm
from proximo.errors import ConfigError
from proximo.rewards import Reward
from proximo.run import checkpoint
from proximo.run.language.build import Given, LanguageTrain, build, here
from proximo.run.language.judge import LanguageScore
from proximo.run.language.plan import LanguagePlan
from proximo.run.language.session import computing, load, must_have, plan_of
from proximo.run.language.speaker import Message
from proximo.run.run import load_policy
from proximo.sources.tokens import TokenSource

Z95 = 1.959963984540054  # of the normal distribution: 95 % lie within


def chat(path: Path, prompt: str | None, max_tokens: int | None, temperature: float, seed: int) -> None:
    """Complete one prompt, or each line that is typed until an empty one.

    Where the run learned from messages, a line is the user's turn of a conversation, by the chat template.
    """
    speaker, plan = load(path), plan_of(path)
    talk, seeds = list[Message](), count(seed)

    def answer(line: str) -> str:
        talk.append({"role": "user", "content": line})
        while len(talk) > 1 and speaker.room(len(speaker.tokens(talk))) < (max_tokens or speaker.longest or 1):
            del talk[:2]  # the oldest turns, where the model's context has no room for all
        (text,) = speaker.complete([talk if plan.conversation else line], max_tokens, temperature, next(seeds))
        talk.append({"role": "assistant", "content": text})
        return text

    if prompt is not None:
        print(answer(prompt))
        return
    while line := typed():
        try:
            print(answer(line))
        except ConfigError as error:  # a line that is too long, say: the next one may be better
            talk.clear()
            print(f"proximo: {error}", file=sys.stderr)


def typed() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return ""


@dataclass(frozen=True)
class Verdict:
    """What an evaluation found, and how often this model won against another."""

    score: LanguageScore
    wins: float | None = None  # share of prompts, a tie counting one half
    interval: tuple[float, float] | None = None  # 95 %, Wilson's

    def row(self) -> dict[str, Any]:
        row = self.score.row()
        return row if self.wins is None else {**row, "wins": self.wins, "wins_95": self.interval}

    def summary(self) -> list[str]:
        s = self.score
        each = "" if s.counted == "pairs" else f", {np.mean(s.lengths):.1f} tokens each"
        lines = [f"score   {s.mean:.3f} ± {s.std:.3f} over {len(s.returns)} {s.counted}{each}"]
        lines += [f"{name:7} {value:.4g}" for name, value in s.more.items()]
        if self.wins is not None and self.interval is not None:
            low, high = self.interval
            lines.append(f"wins    {self.wins:.1%} (95 %: {low:.1%} to {high:.1%})")
        return lines


def evaluated(
    path: str | Path,
    data: Any = None,
    prompts: int = 64,
    against: str | None = None,
    temperature: float | None = None,
    reward: Reward | None = None,
    rewards: Sequence[str] = (),
    reward_model: str | Path | None = None,
    max_tokens: int | None = None,
) -> Verdict:
    """Complete prompts (held-out ones of the run's data, or others) with the newest good checkpoint.

    `against` is another run that is finished, or a model: the judge says whose completion of a prompt is worth more.
    The judge is the run's own reward, or, of any run that completes prompts, `rewards` by name, a `reward_model`'s run
    or `reward`, a function. Without one, a run that learned from a data set is judged by that: how likely it finds
    held-out texts, or whether it prefers what was chosen.
    """
    path = Path(path)
    plan = plan_of(path)
    if rewards or reward_model or (reward is not None and "reward" not in plan.yours):
        plan = judged_by(plan, tuple(rewards), reward_model, reward is not None)
    must_have(plan, "evaluate", data=data, reward=reward)
    longest = max_tokens or plan.run.max_tokens
    run = replace(plan.run, eval_prompts=prompts, temperature=temperature or plan.run.temperature, max_tokens=longest)
    run = replace(run, device=here("auto"))  # wherever it was trained
    own, given = plan.data if data is None else data, Given(reward)
    whole = data is not None and ("data" not in plan.yours or isinstance(data, str | Path))  # else it is its own
    if data is not None:
        plan = replace(plan, data=str(data), examples="" if whole else plan.examples)
    with computing(run):
        ours = build(replace(plan, run=run), own, given, lambda text: None, whole)
        score = judged(ours, path, temperature)
        if against is None:
            return Verdict(score)
        if not isinstance(ours.source, TokenSource):
            judge = "--rewards or --reward-model says (reward=… in Python)"
            raise ConfigError(f"{path} learned from a data set: who wins against another on its prompts, {judge}")
        other = replace(plan, run=run, model=against, weights="", examples="")
        theirs = build(other, own, given, lambda text: None, whole)
        must_be_asked_alike(ours, theirs)
        return versus(score, judged(theirs, None, temperature).returns)


def must_be_asked_alike(ours: LanguageTrain, theirs: LanguageTrain) -> None:
    """ConfigError where two models do not complete the same prompts."""
    one, other = ([each.text for each in run.agent.held] for run in (ours, theirs))
    if one != other:
        words = f"of {len(one)} prompts here {len(other)} there, or other ones, fit into the model"
        raise ConfigError(f"the two models are not asked the same: {words}: take shorter prompts (--data)")


def judged_by(plan: LanguagePlan, rewards: tuple[str, ...], reward_model: str | Path | None, own: bool) -> LanguagePlan:
    """The plan of a run that completes prompts, to be judged by these rewards in place of its own."""
    if plan.algo == "reward":
        raise ConfigError("a reward model judges texts and writes none: leave out rewards and reward_model")
    run = replace(plan.run, rewards=rewards, reward_model=reward_model and str(reward_model), missing_eos=None)
    yours = tuple(name for name in plan.yours if name != "reward") + (("reward",) if own else ())
    plan = replace(plan, run=run, judge="", yours=yours)
    if not plan.samples:  # completes prompts as a run of RLOO's would, beside the model it began with
        run = replace(run, pack=None, whole_text=False)
        plan = replace(plan, algo="rloo", algorithm=language_algorithm("rloo").Config(), run=run, examples="")
    return plan


def judged(run: LanguageTrain, path: Path | None, temperature: float | None) -> LanguageScore:
    """The evaluation of a run's parts, with the newest good checkpoint in a folder; of the likeliest tokens at 0."""
    if path is not None:
        load_policy(run.policy, checkpoint.latest(path, lambda text: None))
    if temperature == 0 and isinstance(run.source, TokenSource):
        run.source.sampling = replace(run.source.sampling, temperature=0.0)
    assert run.judge is not None
    score = run.judge(lambda: False)
    assert isinstance(score, LanguageScore)
    return score


def versus(score: LanguageScore, theirs: Sequence[float]) -> Verdict:
    """How often the first has the larger reward on the same prompts, with Wilson's interval (1927)."""
    won = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(score.returns, theirs, strict=True)]
    n, p = len(won), float(np.mean(won))
    middle, width = p + Z95**2 / (2 * n), Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    scale = 1 + Z95**2 / n
    return Verdict(score, p, ((middle - width) / scale, (middle + width) / scale))
