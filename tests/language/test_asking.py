"""Asking trained models: what is evaluated on, and what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proximo import cli, language
from proximo.errors import ConfigError, RunFolderError
from proximo.run.language.chatting import chat
from tests.conftest import Complaint
from tests.language import tiny
from tests.language.conftest import letters
from tests.language.test_runs import Finished

PROMPTS = [{"prompt": letter} for letter in "abcdefghij"]


def long(prompts: list[str], completions: list[str], length: list[int]) -> list[float]:
    return [float(each) for each in length]


@pytest.mark.parametrize("algo", ["sft", "dpo"])
def test_what_learned_from_a_data_set_completes_prompts_for_a_judge(
    algo: str, finished: Finished, data: Path, complaint: Complaint, capfd: pytest.CaptureFixture[str]
) -> None:
    run, model = finished(algo), finished("reward").folder
    with pytest.raises(ConfigError, match="--rewards or --reward-model"):
        language.evaluate(run.folder, against=run.config.model)
    found = language.evaluate(run.folder, against=run.config.model, prompts=6, reward=letters)
    assert found.score.counted == "prompts"
    assert found.score.more["kl_ref"] != 0
    assert found.interval is not None
    named = language.evaluate(run.folder, prompts=6, rewards=("exact_match",))
    assert set(named.score.returns) <= {0.0, 1.0}
    cli.execute(["language", "eval", str(run.folder), "--reward-model", str(model), "--prompts", "3"])
    assert "over 3 prompts" in capfd.readouterr().out
    assert "judges texts and writes none" in complaint("language", "eval", model, "--rewards", "exact_match")


def test_another_judge_than_the_runs_own(finished: Finished) -> None:
    run = finished("grpo").folder  # its reward came from Python, and is not needed then
    assert set(language.evaluate(run, rewards=("exact_match",)).score.returns) <= {0.0, 1.0}


def test_completions_are_as_long_as_while_learning_and_the_context_allows(finished: Finished) -> None:
    speaker = language.load(str(finished("grpo").folder))
    asked = [len(speaker.words.tokenizer(text)["input_ids"]) for text in speaker.complete(["a"] * 40, seed=1)]
    assert max(asked) <= 6  # SMALL's max_tokens
    long = language.load(finished("sft").folder)
    assert long.complete([" ".join("a" * 60)])  # 64 in all
    with pytest.raises(ConfigError, match="do not fit into the model's context"):
        long.complete([" ".join("a" * 60)], max_tokens=5)


def test_a_chat_that_outgrows_the_context_forgets_its_oldest_turns(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
    few: dict[str, Any] = dict(steps=1, batch=4, held_out=0.2, quiet=True)
    run = language.train(model, [dict(messages=talk)] * 10, "sft", out=tmp_path / "run", **few)
    lines = iter([*["a b c d e f g h"] * 12, " ".join("a" * 70), "a", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    chat(run.folder, None, 8, 1.0, 0)
    out, said = capsys.readouterr()
    assert len(out.splitlines()) == 13
    assert said.count("proximo: ") == 1
    assert "do not fit into the model's context" in said


def test_a_judge_needs_prompts_and_completions_alone(finished: Finished) -> None:
    judge: Any = language.judge(finished("reward").folder)
    assert judge(["a 1"], ["a"]) == judge(["a 1"], ["a"], ended=[True])
    assert judge(["a 1"], ["a"]) != judge(["a 1"], ["a"], ended=[False])


def test_evaluations_take_paths_as_text_and_lengths(finished: Finished) -> None:
    found = language.evaluate(str(finished("sft").folder), reward=letters, max_tokens=3)
    assert max(found.score.lengths) <= 3


def test_an_evaluation_tells_what_of_a_run_came_from_python(tmp_path: Path) -> None:
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    tiny.llama().save_pretrained(tmp_path / "model")
    run = language.train(
        tmp_path / "model", PROMPTS, "ppo", reward=long, out=tmp_path / "run", quiet=True,
        steps=1, batch=4, max_tokens=4, held_out=0.3, threads=1,
    )  # fmt: skip
    with pytest.raises(RunFolderError, match="the data of this run came from Python"):
        language.evaluate(run.folder, reward=long)
    with pytest.raises(RunFolderError, match="the reward of this run came from Python"):
        language.evaluate(run.folder, PROMPTS)
    assert language.evaluate(run.folder, PROMPTS, reward=long).score.returns == run.score.returns  # type: ignore
