"""Rewards: what a completion is worth. A Reward is any function of prompts and completions; these compose.

    def short(prompts, completions, **columns):
        return [-len(completion) / 100 for completion in completions]

    reward = missing_eos(Weighted({"exact_match": (exact_match, 1.0), "short": (short, 0.1)}))

It is called by keywords: `prompts`, `completions` and the columns of the data set, lists of N each, of which a function
without `**columns` gets those that it names. Always there are `length`, the tokens of each completion, EOS included,
`ended`, whether it came to its EOS, and the tokens themselves, `prompt_ids` and `completion_ids`. It returns N finite
numbers.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from proximo.errors import ConfigError, RewardError, unknown

NUMBER = re.compile(
    r"""((?<![\w).])[-+])?  # a sign, unless something stands before it from which is taken away
    (([0-9]{1,3}(,[0-9]{3})+(?![0-9])|[0-9]+)(\.[0-9]+)?|(?<![0-9])\.[0-9]+)
    ([eE][-+]?[0-9]+)?""",
    re.VERBOSE,
)


# (prompts: list[str], completions: list[str], **columns: list) -> a score for each; it may name columns instead of **
Reward = Callable[..., Sequence[float]]


def scores(
    reward: Reward, prompts: list[str], completions: list[str], columns: Mapping[str, Any], name: str = ""
) -> list[float]:
    """What a reward says of N completions, as N finite numbers; `name` is what errors call it.

    Raises ConfigError for a column that it needs and the data set has not, and RewardError, with its name and the row,
    where it raises, or returns anything else.
    """
    name, rows = name or name_of(reward), len(completions)
    taken = _taken(reward, columns, name)

    def call(part: slice) -> Any:
        return reward(prompts=prompts[part], completions=completions[part], **{k: v[part] for k, v in taken.items()})

    try:
        returned = call(slice(None))
    except (RewardError, ConfigError):
        raise
    except Exception as error:
        row = next((i for i in range(rows) if _raises(lambda i=i: call(slice(i, i + 1)))), None)
        where = f"on {rows} completions" if row is None else _where(row, prompts, completions)
        raise RewardError(f"the reward {name} raised {type(error).__name__}: {error}, {where}") from error
    values = returned.tolist() if hasattr(returned, "tolist") else returned
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != rows:
        many = f"{len(values)} scores" if isinstance(values, list | tuple) else f"a {type(returned).__name__}"
        raise RewardError(f"the reward {name} returned {many} for {rows} completions: it must return a list of {rows}")
    for row, value in enumerate(values):
        if not _is_score(value):
            told = f"returned {value!r}, not a finite number,"
            raise RewardError(f"the reward {name} {told} {_where(row, prompts, completions)}")
    return [float(value) for value in values]


def name_of(reward: Reward) -> str:
    """A function's own name, else its class's."""
    return getattr(reward, "__name__", type(reward).__name__)


def must_have_columns(reward: Reward, columns: Collection[str], name: str) -> None:
    """ConfigError for a column that a reward needs and that is not there."""
    asked = _asked(reward) or []
    needed = [p.name for p in asked if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if missing := [each for each in needed if each not in columns and each not in ("prompts", "completions")]:
        there = ", ".join(sorted(columns)) or "none"
        raise ConfigError(f"the reward {name} needs the column {missing[0]}; there are {there}")


def _asked(reward: Reward) -> list[inspect.Parameter] | None:
    """What a function takes; None where it does not say, as one written in C."""
    try:
        return list(inspect.signature(reward).parameters.values())
    except (TypeError, ValueError):
        return None


def _taken(reward: Reward, columns: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The columns that a function asks for."""
    must_have_columns(reward, columns, name)
    asked = _asked(reward)
    if asked is None or any(p.kind is p.VAR_KEYWORD for p in asked):
        return columns
    return {p.name: columns[p.name] for p in asked if p.name in columns}


def _raises(call: Callable[[], Any]) -> bool:
    try:
        call()
    except Exception:
        return True
    return False


def _is_score(value: Any) -> bool:
    try:
        return value is not None and not isinstance(value, str) and math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def _where(row: int, prompts: list[str], completions: list[str]) -> str:
    return f"on row {row}: prompt {prompts[row][-60:]!r}, completion {completions[row][:60]!r}"


class Weighted:
    """A weighted sum of rewards, which knows its parts: {name: (reward, weight)}."""

    def __init__(self, rewards: Mapping[str, tuple[Reward, float]]) -> None:
        """Raises ConfigError for no rewards, or a weight that is not finite."""
        if not rewards:
            raise ConfigError("there is no reward to sum")
        for name, (_, weight) in rewards.items():
            if not math.isfinite(weight):
                raise ConfigError(f"the weight of the reward {name} is {weight}: it must be a finite number")
        self.rewards = dict(rewards)

    def parts(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> dict[str, list[float]]:
        """The scores of each, before they are weighted."""
        return {name: scores(each, prompts, completions, columns, name) for name, (each, _) in self.rewards.items()}

    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        weights = [weight for _, weight in self.rewards.values()]
        rows = zip(*self.parts(prompts, completions, **columns).values(), strict=True)
        return [math.fsum(weight * score for weight, score in zip(weights, row, strict=True)) for row in rows]


def pessimistic(rewards: Sequence[Reward], k: float = 1.0) -> Reward:
    """Mean − k · standard deviation over an ensemble: where its members disagree, less is believed.

    The deviation is that of the members there are, without Bessel's correction. Against over-optimisation: Coste et al.
    2023, arXiv:2310.02743 (with the variance); Eisenstein et al. 2023, arXiv:2312.09244.
    """

    def believed(row: Sequence[float]) -> float:
        mean = math.fsum(row) / len(row)
        return mean - k * math.sqrt(math.fsum((x - mean) ** 2 for x in row) / len(row))

    return _ensemble(rewards, believed)


def lowest(rewards: Sequence[Reward]) -> Reward:
    """The worst score of an ensemble (worst-case optimisation, Coste et al. 2023, arXiv:2310.02743)."""
    return _ensemble(rewards, min)


def _ensemble(rewards: Sequence[Reward], reduce: Callable[[Sequence[float]], float]) -> Reward:
    if not rewards:
        raise ConfigError("an ensemble needs a reward")

    def ensemble(prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        names = [f"{name_of(each)} (member {i})" for i, each in enumerate(rewards)]
        members = [scores(r, prompts, completions, columns, n) for r, n in zip(rewards, names, strict=True)]
        return [reduce(row) for row in zip(*members, strict=True)]

    return ensemble


def missing_eos(reward: Reward, score: float = -1.0) -> Reward:
    """The reward of completions that ended, and `score` in place of it for those cut off (Ziegler et al. 2019,
    arXiv:1909.08593: −1)."""

    def ended_or_not(
        prompts: list[str], completions: list[str], ended: list[bool], **columns: list[Any]
    ) -> list[float]:
        found = scores(reward, prompts, completions, {**columns, "ended": ended})
        return [each if over else score for each, over in zip(found, ended, strict=True)]

    return ended_or_not


def length_penalty(per_token: float) -> Reward:
    """−per_token for every token of the completion."""

    def length_penalty(prompts: list[str], completions: list[str], length: list[int]) -> list[float]:
        return [-per_token * each for each in length]

    return length_penalty


def overlong(max_length: int, cache: int) -> Reward:
    """0 up to max_length − cache tokens, then falling evenly to −1 at max_length (DAPO, Yu et al. 2025,
    arXiv:2503.14476, equation 13)."""
    if not 0 < cache <= max_length:
        raise ConfigError(f"cache is {cache}: it must be between 1 and max_length, {max_length}")

    def overlong(prompts: list[str], completions: list[str], length: list[int]) -> list[float]:
        return [-min(max(each - (max_length - cache), 0), cache) / cache for each in length]

    return overlong


def exact_match(prompts: list[str], completions: list[str], answer: list[Any]) -> list[float]:
    """1 where the completion is the column `answer`, white space around either aside; else 0."""
    return [float(each.strip() == str(right).strip()) for each, right in zip(completions, answer, strict=True)]


def numeric(relative: float = 1e-6, absolute: float = 1e-9) -> Reward:
    """1 where the last number in the completion is the last in the column `answer`, up to a tolerance; else 0.

    1,000 is a thousand; a minus behind a digit, a word or a bracket takes away and is no sign. An answer that has no
    number is an error.
    """

    def numeric(prompts: list[str], completions: list[str], answer: list[Any]) -> list[float]:
        found = []
        for completion, right in zip(completions, answer, strict=True):
            goal, said = last_number(str(right)), last_number(completion)
            if goal is None:
                raise ValueError(f"there is no number in the answer {right!r}")
            found.append(float(said is not None and math.isclose(said, goal, rel_tol=relative, abs_tol=absolute)))
        return found

    return numeric


def last_number(text: str) -> float | None:
    """The last number that a text mentions."""
    found = [match.group() for match in NUMBER.finditer(text.replace("−", "-"))]
    return float(found[-1].replace(",", "")) if found else None


REWARDS: dict[str, Reward] = {"exact_match": exact_match, "numeric": numeric()}


def named(name: str) -> Reward:
    """A built-in reward; UnknownName for any other: functions of one's own come through Python, never by name."""
    if name not in REWARDS:
        raise unknown("reward", name, REWARDS, "a function of your own is given in Python")
    return REWARDS[name]
