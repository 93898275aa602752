"""Asking trained models: what is evaluated on, and what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from proximo import language
from proximo.errors import RunFolderError
from tests.language import tiny

PROMPTS = [{"prompt": letter} for letter in "abcdefghij"]


def long(prompts: list[str], completions: list[str], length: list[int]) -> list[float]:
    return [float(each) for each in length]


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
