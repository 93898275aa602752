"""A tiny model and data sets in files, to train from; what was trained once, to copy or to spoil."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from proximo import language
from proximo.algorithms.language import LANGUAGE
from proximo.run import drive
from proximo.run.language.build import LanguageTrain
from tests.language import tiny

LETTERS = "abcdefghij"
SMALL: dict[str, Any] = dict(
    steps=6, batch=4, max_tokens=6, held_out=0.2, eval_prompts=6, checkpoint_every=2, eval_every=3, lr=1e-3, threads=1
)
Train = Callable[..., LanguageTrain]


def letters(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """The share of four places in which there is an a: what every completion can learn."""
    return [each.count("a") / 4 for each in completions]


def online(algo: str) -> bool:
    return LANGUAGE[algo].learns_from == "completions"


def rows(count: int = 40) -> list[dict[str, str]]:
    """Prompts, what completes them, and pairs of which a comes first: in the formats of all algorithms at once."""
    found = []
    for i in range(count):
        letter = LETTERS[i % len(LETTERS)]
        answer = " ".join(letter for _ in range(1 + i % 3))
        pair = dict(chosen=f"a {letter}", rejected=f"{letter} z z"[: 3 + 2 * (i % 2)])
        found.append(dict(prompt=f"{letter} {i % 7} +"[: 3 + 2 * (i % 2)], completion=answer, answer=answer, **pair))
    return found


def saved(folder: Path, model: Any, tokenizer: Any) -> Path:
    """A folder as `save_pretrained` writes it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of a few thousand numbers. Read only."""
    words = tiny.tokenizer()
    return saved(tmp_path_factory.mktemp("llama") / "model", tiny.llama(len(words.get_vocab())), words)


@pytest.fixture(scope="session")
def dropping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 whose configuration asks for dropout, and says that it came from elsewhere. Read only."""
    words = tiny.tokenizer()
    path = saved(tmp_path_factory.mktemp("gpt2") / "model", tiny.gpt2(len(words.get_vocab())), words)
    config = json.loads((path / "config.json").read_text())
    assert config["resid_pdrop"] == 0.1
    (path / "config.json").write_text(json.dumps({**config, "_name_or_path": "somebody/else"}))
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is about crashes, nor looks at curves."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(drive, "has_curve", lambda folder: False)


@pytest.fixture(scope="session")
def train(model: Path, data: Path) -> Train:
    """Train a small run of an algorithm in a folder."""

    def small(algo: str, out: Path, **settings: Any) -> LanguageTrain:
        own = dict(reward=letters) if online(algo) and "rewards" not in settings else {}
        chosen = {"model": model, "data": data, **SMALL, **own, **settings}
        return language.train(algo=algo, out=out, quiet=True, **chosen)

    return small


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, train: Train) -> Callable[[str], LanguageTrain]:
    """The run of an algorithm, trained when it is first asked for. Read only."""
    runs: dict[str, LanguageTrain] = {}

    def of(algo: str) -> LanguageTrain:
        if algo not in runs:
            runs[algo] = train(algo, tmp_path_factory.mktemp(algo) / "run")
            assert runs[algo].finished, "whoever first asked for it had made training something else"
        return runs[algo]

    return of
