"""Asking trained models: what is evaluated on, and what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from proximo import cli, language
from proximo.errors import ConfigError, RunFolderError
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
