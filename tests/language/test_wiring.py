"""What is asked for reaches the part that does it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proximo import ConfigError, language
from proximo.models.language.rows import LOGITS, together
from proximo.run.language.build import LanguageTrain, reward_model
from proximo.run.language.speaker import ModelReward
from proximo.sources.generation import Completions, decode
from proximo.sources.text.padding import completions
from tests.language.conftest import Train, letters, rows

Finished = Callable[[str], LanguageTrain]

pytestmark = pytest.mark.usefixtures("quick")


def test_an_engine_of_ones_own_samples_and_is_asked_for_again(model: Path, tmp_path: Path) -> None:
    asked = []

    def engine(*request: Any) -> Completions:
        asked.append(request[0])
        return decode(*request)

    settings: dict[str, Any] = dict(batch=4, group=2, max_tokens=4, held_out=0.2, eval_prompts=2, threads=1, quiet=True)
    run = language.train(
        model, rows(), "grpo", reward=letters, generator=engine, out=tmp_path / "run", steps=2, **settings
    )
    assert len(asked) >= 3  # two collections and an evaluation
    assert run.config.yours == ("data", "reward", "generator")
    with pytest.raises(Exception, match="the generator of this run came from Python"):
        language.resume(run.folder, rows(), reward=letters, steps=4)
    again = language.resume(run.folder, rows(), reward=letters, generator=engine, steps=4, quiet=True)
    assert again.step == 4


def test_continuous_batching_trains(train: Train, tmp_path: Path) -> None:
    few: dict[str, Any] = dict(steps=1, eval_every=0, eval_prompts=1, group=2, batch=2)
    run = train("grpo", tmp_path / "run", generator="continuous", **few)
    assert run.step == 1


def test_prompts_that_scored_alike_are_exchanged(train: Train, tmp_path: Path) -> None:
    """Where no completion ever scores, all are drawn again, and again."""
    never: dict[str, Any] = dict(rewards=("exact_match",), steps=1, eval_every=0, group=2, max_tokens=1)
    once = train("dapo", tmp_path / "once", **never)
    thrice = train("dapo", tmp_path / "thrice", resample=2, **never)
    assert int(thrice.source.loader.position) == 3 * int(once.source.loader.position)
    with pytest.raises(ConfigError, match="resample exchanges groups"):
        train("ppo", tmp_path / "no", resample=1)


def test_margins_of_the_data_are_learned(model: Path, tmp_path: Path) -> None:
    pairs = [dict(prompt=row["prompt"], chosen=row["chosen"], rejected=row["rejected"]) for row in rows()]
    settings: dict[str, Any] = dict(steps=1, batch=4, held_out=0.2, max_tokens=6, threads=1, quiet=True, centering=0.0)
    losses = []
    for margin in (None, 3.0):
        data = [row if margin is None else {**row, "margin": margin} for row in pairs]
        run = language.train(model, data, "reward", out=tmp_path / str(margin), **settings)
        losses.append(run.metrics["reward_loss"])
    assert losses[1] > losses[0] + 2  # −log σ(r_c − r_r − 3), rewards still near zero
    broken = [{**row, "margin": "much"} for row in pairs]
    with pytest.raises(ConfigError, match="is 'much': it must be a finite number"):
        language.train(model, broken, "reward", out=tmp_path / "broken", **settings)


def test_a_reward_model_ends_with_mean_zero_and_deviation_one(finished: Finished) -> None:
    run = finished("reward")
    model, words = reward_model(run.folder)
    judge = ModelReward(model, words, words.tokenizer)
    held = run.agent.held
    found = [judge.scores([list(each.prompt)] * 2, [list(answer) for answer in each.answers]) for each in held]
    assert np.mean(found) == pytest.approx(0, abs=1e-4)
    assert np.std(found, ddof=1) == pytest.approx(1, abs=1e-4)


def test_a_finished_run_is_an_opponent_whatever_trained_it(finished: Finished, data: Path) -> None:
    """PPO has a critic, SFT has none."""
    ppo, sft = finished("ppo").folder, finished("sft").folder
    found = language.evaluate(ppo, against=str(sft), prompts=4, reward=letters)
    assert found.wins is not None
    assert 0 <= found.wins <= 1


def test_all_of_other_data_is_evaluated(finished: Finished, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in rows(7)))
    found = language.evaluate(finished("grpo").folder, data=other, reward=letters)
    assert len(found.score.returns) == 7


def test_dr_grpos_constant_is_the_runs_longest(finished: Finished) -> None:
    assert finished("dr_grpo").config.algorithm.max_length == 6


@pytest.mark.parametrize(
    ("algo", "settings", "words"),
    [
        ("dpo", dict(max_kl=0.1), "max_kl and stop_drift are for what a policy sampled"),
        ("sft", dict(stop_drift=1.0), "max_kl and stop_drift are for what a policy sampled"),
        ("grpo", dict(max_kl=0.1, precision="bfloat16"), "measures more precisely than bfloat16"),
        ("sft", dict(pack=16, minibatches=2), "pack fills as many rows as the texts need"),
        ("ppo", dict(beta=0.0, target_kl=1.0), "target_kl leads beta, which is 0"),
        ("ipo", dict(beta=0.0), "beta is 0"),
    ],
)
def test_what_could_not_work_is_refused(
    algo: str, settings: dict[str, Any], words: str, train: Train, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        train(algo, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_an_adapter_alone_is_no_model(model: Path, data: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(model, tmp_path / "model"))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds an adapter: merge it"):
        language.train(folder, data, "sft", out=tmp_path / "run")


def test_pieces_have_room_for_logits() -> None:
    batch = completions([[5, 6]] * 64, [[7] * 32] * 64, 0)
    assert together(batch) == 128  # of 33 tokens each
    assert together(batch, 2**20) == LOGITS // (32 * 2**20) == 8
    assert together(batch, 2**40) == 1
