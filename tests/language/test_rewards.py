"""Rewards by hand, their compositions, and functions that break their word."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proximo import rewards
from proximo.errors import ConfigError, ProximoError, RewardError, UnknownName
from proximo.rewards import (
    Weighted,
    last_number,
    length_penalty,
    lowest,
    missing_eos,
    named,
    overlong,
    pessimistic,
    scores,
)

PROMPTS, COMPLETIONS = ["1+1=", "2+2=", "3+3="], ["2", " 4\n", "seven"]
COLUMNS: dict[str, list[Any]] = {"answer": ["2", 4, 6], "length": [2, 10, 7], "ended": [True, False, True]}


def told(reward: Any, columns: dict[str, list[Any]] = COLUMNS) -> list[float]:
    return scores(reward, PROMPTS, COMPLETIONS, columns)


def constant(*values: float) -> rewards.Reward:
    def constant(prompts: list[str], completions: list[str]) -> list[float]:
        return [*values]

    return constant


def refusal(kind: type[ProximoError], reward: Any, columns: dict[str, list[Any]] = COLUMNS) -> str:
    with pytest.raises(kind) as caught:
        told(reward, columns)
    return str(caught.value)


def test_verifiable_rewards() -> None:
    assert told(named("exact_match")) == [1, 1, 0]
    assert told(named("numeric")) == [1, 1, 0]
    near = scores(rewards.numeric(relative=0.1), ["", ""], ["about 95", "80"], {"answer": ["#### 100", 100.0]})
    assert near == [1, 0]
    assert scores(named("numeric"), [""], ["1,000.0 apples"], {"answer": [1000]}) == [1]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("none", None),
        ("12", 12),
        ("it is -3.", -3),
        ("−3", -3),
        ("5-3", 3),
        ("x=-1,234.5", -1234.5),
        ("(2)-7", 7),
        ("1,2,3", 3),
        ("$1,000,000", 1e6),
        ("6e2 or .5", 0.5),
        ("6E-2", 0.06),
        ("9" * 400, math.inf),
        ("٣", None),
    ],
)
def test_the_last_number(text: str, number: float | None) -> None:
    assert last_number(text) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_that_is_written_is_read(number: float) -> None:
    assert last_number(f"1 and then {number}") == number


def test_penalties() -> None:
    assert told(length_penalty(0.5)) == [-1, -5, -3.5]
    assert told(overlong(10, 4)) == [0, -1, -0.25]
    lengths = {"length": [6, 8, 99]}
    assert told(overlong(10, 4), lengths) == [0, -0.5, -1]
    assert told(missing_eos(constant(3, 4, 5))) == [3, -1, 5]  # in its place, not added to it
    assert told(missing_eos(constant(3, 4, 5), -7)) == [3, -7, 5]
    knows = missing_eos(lambda prompts, completions, ended: [float(each) for each in ended])
    assert told(knows) == [1, -1, 1]
    for cache in (0, 11):
        with pytest.raises(ConfigError, match=f"cache is {cache}"):
            overlong(10, cache)


def test_ensembles_believe_less_where_they_disagree() -> None:
    members = [constant(1, 2, 3), constant(3, 2, 3)]
    assert told(pessimistic(members, 1.0)) == [1, 2, 3]  # 2 - 1, no deviation, none
    assert told(pessimistic(members, 0.0)) == [2, 2, 3]
    assert told(pessimistic(members, 0.5)) == [1.5, 2, 3]
    assert told(lowest(members)) == [1, 2, 3]
    for ensemble in (pessimistic, lowest):
        with pytest.raises(ConfigError, match="needs a reward"):
            ensemble([])


def test_weighted_sums_know_their_parts_and_compose() -> None:
    both = Weighted({"right": (named("exact_match"), 2.0), "short": (length_penalty(1.0), 0.1)})
    assert both.parts(PROMPTS, COMPLETIONS, **COLUMNS) == {"right": [1, 1, 0], "short": [-2, -10, -7]}
    assert told(both) == pytest.approx([1.8, 1, -0.7])
    assert told(missing_eos(both)) == pytest.approx([1.8, -1, -0.7])
    assert told(Weighted({"all": (lowest([both, constant(0, 0, 0)]), 1.0)})) == pytest.approx([0, 0, -0.7])
    with pytest.raises(ConfigError, match="no reward"):
        Weighted({})
    with pytest.raises(ConfigError, match="weight of the reward right is nan"):
        Weighted({"right": (named("numeric"), math.nan)})


def test_a_function_gets_the_columns_that_it_names_by_keyword() -> None:
    def named_ones(completions: list[str], prompts: list[str], answer: list[Any], other: int = 3) -> list[float]:
        assert (prompts, completions, answer, other) == (PROMPTS, COMPLETIONS, COLUMNS["answer"], 3)
        return [1, 2, 3]

    def all_of_them(completions: list[str], **columns: Any) -> list[float]:
        assert columns == COLUMNS | {"prompts": PROMPTS}
        return [1, 2, 3]

    class Model:
        def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
            return [1, 2, 3]

    for reward in (named_ones, all_of_them, Model()):
        assert told(reward) == [1, 2, 3]
    assert rewards.name_of(Model()) == "Model"
    assert "exact_match needs the column answer; there are length" in refusal(
        ConfigError, named("exact_match"), {"length": [1, 2, 3]}
    )


@pytest.mark.parametrize("make", [np.array, torch.tensor, tuple, lambda x: [np.float32(each) for each in x]])
def test_scores_may_be_arrays(make: Callable[[list[float]], Any]) -> None:
    found = told(lambda prompts, completions: make([0.5, 1.0, 2.0]))
    assert found == [0.5, 1, 2]
    assert {type(each) for each in found} == {float}
    assert told(lambda prompts, completions: [True, False, True]) == [1, 0, 1]


def judge(*values: Any) -> rewards.Reward:
    def judge(prompts: list[str], completions: list[str], **columns: Any) -> Any:
        return values[0] if len(values) == 1 else [*values]

    return judge


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, "2", [1.0], 10**400, object()])
def test_what_is_no_score_is_said_with_its_row(bad: Any) -> None:
    words = refusal(RewardError, judge(1, bad, 2))
    assert "the reward judge returned" in words
    assert "not a finite number, on row 1: prompt '2+2=', completion ' 4\\n'" in words


@pytest.mark.parametrize("bad", [None, 1.0, "abc", (x for x in "abc"), torch.tensor(1.0), {0: 1}])
def test_what_is_no_list_of_scores(bad: Any) -> None:
    assert "judge returned a " in refusal(RewardError, judge(bad))


def test_a_wrong_number_of_scores() -> None:
    assert "judge returned 2 scores for 3 completions" in refusal(RewardError, judge(1, 2))


def test_a_function_that_raises_is_named_with_the_row_it_raises_on() -> None:
    def digits(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(each) for each in completions]

    words = refusal(RewardError, digits)
    assert "the reward digits raised ValueError: could not convert" in words
    assert "on row 2: prompt '3+3=', completion 'seven'" in words
    assert "member 1" in refusal(RewardError, lowest([constant(1, 2, 3), digits]))
    assert "the reward mine raised" in refusal(RewardError, Weighted({"mine": (digits, 1.0)}))
    assert "reward digits raised" in refusal(RewardError, missing_eos(digits))

    def always(prompts: list[str], completions: list[str]) -> list[float]:
        raise KeyError("what")

    def crowd(prompts: list[str], completions: list[str]) -> list[float]:
        if len(completions) > 1:
            raise KeyError("too many")
        return [0.0]

    assert "on row 0" in refusal(RewardError, always)
    assert "on 3 completions" in refusal(RewardError, crowd)
    assert "no number in the answer 'x'" in refusal(RewardError, named("numeric"), {"answer": [1, "x", 2]})


def test_names_come_from_the_registry_alone() -> None:
    with pytest.raises(UnknownName, match="did you mean exact_match"):
        named("exact_matsh")
    for name in ("os.system", "proximo.rewards.overlong", "__import__", "lowest"):
        with pytest.raises(UnknownName):
            named(name)
