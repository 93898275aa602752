"""Rows that are read when they are drawn make the run that rows in memory make, and go on as exactly."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from proximo import language
from proximo.errors import CheckpointError, ConfigError
from proximo.run.checkpoint import all_of
from proximo.run.language.material import Material, Words, material
from proximo.run.language.plan import LanguageRun
from proximo.sources.text import streaming
from proximo.sources.text.loader import Loader, parted
from proximo.sources.text.reading import read
from proximo.sources.text.streaming import Lazy, opened
from tests.conftest import Complaint
from tests.language.conftest import Train, letters, rows
from tests.language.test_runs import assert_same_run, cut, resumed
from tests.language.tiny import tokenizer

pytestmark = pytest.mark.usefixtures("quick")
USER, REPLY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
LONGER: dict[str, Any] = dict(steps=10, checkpoint_every=3, eval_every=5)  # more than an epoch: 40 of 32 examples


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def written(path: Path, found: Sequence[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in found))
    return path


def kept(kind: str, folder: Path) -> Any:
    """The rows of `conftest.rows`, in a file, a folder, or as a data set."""
    import datasets

    whole = datasets.Dataset.from_list(rows())
    if kind == "jsonl":
        return written(folder / "rows.jsonl", ["", *rows()[:7], " ", *rows()[7:]])
    if kind == "parquet":
        whole.to_parquet(folder / "rows.parquet")
        return folder / "rows.parquet"
    if kind == "saved":
        whole.save_to_disk(folder / "saved")
        return folder / "saved"
    return {"dataset": whole, "splits": {"train": whole}, "dicts": rows()}[kind]


KINDS = ["jsonl", "parquet", "saved", "dataset", "splits", "dicts"]


def made(data: Any, kind: str = "texts", **settings: Any) -> Material:
    words = tokenizer()
    run = LanguageRun(**{"held_out": 0.2, **settings})
    return material(data, kind, Words(words, 2, 0), run, 64, len(words.get_vocab()), lambda text: None)


def put(some: Sequence[Any], other: Any) -> list[Any]:
    """Twelve rows whose eleventh, which is learned from, is another."""
    assert 10 in parted(12, 0.2, 0)[0]
    return [*some[:10], other, some[11]]


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


# The same rows


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_and_places(kind: str, tmp_path: Path) -> None:
    data = kept(kind, tmp_path)
    table, _ = opened(data)
    whole = read(data)
    assert list(table.rows) == list(whole.rows) == [table.rows[i] for i in range(40)]
    assert list(table.places) == whole.places
    assert table.rows[-1] == whole.rows[-1]
    assert table.rows[3:9:2] == whole.rows[3:9:2]
    with pytest.raises(IndexError):
        table.rows[40]
    if kind != "dicts":
        assert isinstance(table.rows, Lazy)


@pytest.mark.parametrize("kind", ["texts", "pairs", "completions"])
def test_the_same_examples(kind: str) -> None:
    for settings in ({}, dict(max_tokens=2, seed=3), dict(max_prompt=1, too_long="truncate")):
        lazy, whole = made(rows(), kind, stream=True, **settings), made(rows(), kind, **settings)
        assert (list(lazy.learned), list(lazy.held)) == (whole.learned, whole.held)
        assert (lazy.columns, lazy.conversation) == (whole.columns, whole.conversation)
        drawn = Loader(lazy.learned, 1), Loader(whole.learned, 1)
        assert [drawn[0].draw(5) for _ in range(9)] == [drawn[1].draw(5) for _ in range(9)]


def test_every_turn_of_the_assistant_is_drawn_once(tmp_path: Path) -> None:
    talks = [{"messages": [USER, {**REPLY, "content": f"{i % 10}"}] * (1 + i % 4), "id": i} for i in range(20)]
    for data in (talks, written(tmp_path / "x.jsonl", talks), dataset(talks)):
        lazy, whole = made(data, stream=True, whole_text=True), made(data, whole_text=True)
        assert len(lazy.learned) + len(lazy.held) == 50
        assert (list(lazy.learned), list(lazy.held)) == (whole.learned, whole.held)
        assert lazy.conversation
        assert Loader(lazy.learned, 1).draw(60) == Loader(whole.learned, 1).draw(60)


def dataset(found: list[Any]) -> Any:
    import datasets

    return datasets.Dataset.from_list(found)


def test_messages_among_other_rows() -> None:
    """Where the first row is messages, all are counted; else no row is looked at, and one of several turns is told."""
    talk, pair = {"messages": [USER, REPLY] * 2}, {"prompt": "a", "completion": "b"}
    first = [talk, *[pair] * 5, talk, *[pair] * 5]
    assert list(made(first, stream=True).learned) == made(first).learned
    late = made(put([pair] * 12, talk), stream=True)
    assert "row 11 has 2 turns to learn, unlike the first row" in refusal(lambda: list(late.learned))


# The same runs


@pytest.mark.parametrize(
    ("algo", "kind", "settings"),
    [
        ("sft", "jsonl", {}),
        ("sft", "parquet", dict(pack=24)),
        ("dpo", "jsonl", {}),
        ("dpo", "dataset", {}),
        ("reward", "saved", {}),
        ("grpo", "jsonl", {}),
        ("grpo", "parquet", dict(resample=1)),
        ("grpo", "dicts", {}),
    ],
)
def test_the_same_run_that_goes_on_exactly(
    algo: str, kind: str, settings: dict[str, Any], train: Train, tmp_path: Path
) -> None:
    """Resumed from the sixth update of ten; an epoch ends with the eighth."""
    data = kept(kind, tmp_path)
    whole = train(algo, tmp_path / "whole", data=data, **LONGER, **settings)
    lazy = train(algo, tmp_path / "lazy", data=data, stream=True, **LONGER, **settings)
    assert isinstance(lazy.source.loader.examples, Lazy)
    assert_same_run(whole.folder, lazy.folder)
    assert lazy.config.examples != whole.config.examples
    broken = Path(shutil.copytree(lazy.folder, tmp_path / "broken"))
    cut(broken, 3)
    assert resumed(broken, data=None if isinstance(data, Path) else data).finished
    assert_same_run(whole.folder, broken)


def test_evaluation_of_a_streamed_run(train: Train, data: Path, tmp_path: Path) -> None:
    whole, lazy = (train("sft", tmp_path / str(on), stream=on, steps=2) for on in (False, True))
    scores = [language.evaluate(run.folder, prompts=3).score for run in (whole, lazy)]
    assert scores[0] == scores[1]
    assert language.evaluate(lazy.folder, data, prompts=40).score == language.evaluate(whole.folder, data, 40).score


# Memory


def peak(call: Callable[[], Any]) -> tuple[Any, int]:
    tracemalloc.start()
    try:
        return call(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_rows_are_not_kept(tmp_path: Path) -> None:
    """200,000 rows of 200 bytes: two numbers of each are kept, and an order of them."""
    count, text = 200_000, "a b c d " * 20
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f'{{"prompt": "a {i}", "completion": "{text}"}}\n' for i in range(count)))
    assert path.stat().st_size > 180 * count
    (table, _), most = peak(lambda: opened(path))
    assert len(table.rows) == count
    assert most < 24 * count  # 16, and what an array has in reserve
    lazy, most = peak(lambda: made(path, stream=True))
    assert most < 64 * count
    _, most = peak(lambda: [Loader(lazy.learned, 0).draw(32) for _ in range(2)])
    assert most < 32 * count
    assert lazy.learned[7].text.startswith("a ")
    assert len(lazy.learned) == 160_000


def test_nothing_is_read_before_it_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = list[int]()
    line_of = streaming.row_of

    def watched(line: bytes, path: Path, number: int) -> Any:
        numbers.append(number)
        return line_of(line, path, number)

    monkeypatch.setattr(streaming, "row_of", watched)
    found = made(written(tmp_path / "x.jsonl", rows() * 10), stream=True)
    assert len(numbers) <= 2 + 64  # the first one, and of those held out the first ones
    numbers.clear()
    Loader(found.learned, 0).draw(5)
    assert len(numbers) == 5


# What is wrong


def test_other_data(train: Train, complaint: Complaint, tmp_path: Path) -> None:
    import datasets

    files = {kind: kept(kind, tmp_path) for kind in ("jsonl", "parquet", "saved")}
    names = {kind: opened(data)[1] for kind, data in files.items()}
    assert names["parquet"] == names["saved"] == opened(kept("dataset", tmp_path))[1]  # wherever the rows lie
    run = train("sft", tmp_path / "run", data=files["jsonl"], stream=True, steps=2)
    good = files["jsonl"].read_text()
    other = rows()
    other[5]["prompt"] = "b 1 +"
    written(files["jsonl"], other)
    assert "examples differ" in complaint("resume", run.folder, "--steps", 4)
    files["jsonl"].write_text(good)
    assert language.resume(run.folder, steps=4, quiet=True).finished
    datasets.Dataset.from_list(other).to_parquet(files["parquet"])
    assert opened(files["parquet"])[1] != names["parquet"]
    mine = train("sft", tmp_path / "mine", data=rows(), stream=True, steps=2)
    with pytest.raises(CheckpointError, match="examples differ"):
        language.resume(mine.folder, data=other, steps=4)


def test_another_tokenizer() -> None:
    run = LanguageRun(held_out=0.2, stream=True)
    one, other = (
        material(rows(), "texts", Words(tokenizer(bos=bos), 2, 0), run, 64, 44, lambda text: None).digest
        for bos in (False, True)
    )
    assert one != other


def test_a_file_that_is_written_to_meanwhile(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", rows())
    found = made(path, stream=True)
    path.write_text(path.read_text().replace("a", "b"))
    os.utime(path, ns=(0, 0))  # clocks of disks are coarse
    assert "x.jsonl was written to since this run began" in refusal(lambda: found.learned[0])
    path.unlink()
    assert "x.jsonl cannot be read: No such file" in refusal(lambda: found.learned[0])


BAD: dict[str, tuple[str, Any]] = {
    "is no JSON": ("sft", '{"prompt": '),
    "is a list: expected one object a line": ("sft", "[1]"),
    "has the columns question; completions need": ("sft", {"question": "a"}),
    ": what should be learned is empty": ("sft", {"prompt": "a", "completion": " "}),
    ": the prompt has 70 tokens, more than 58: ": ("sft", {"prompt": "a " * 70, "completion": "a"}),
    "has the columns prompt, answer; pairs need": ("dpo", {"prompt": "a", "answer": "a"}),
    ": the prompt is empty": ("grpo", {"prompt": ""}),
}


@pytest.mark.parametrize("words", BAD)
def test_a_bad_row_is_told_when_it_is_drawn(words: str, train: Train, model: Path, tmp_path: Path) -> None:
    """In the third update, with its line; the first two are saved."""
    algo, bad = BAD[words]
    lines: list[Any] = rows()
    at = parted(40, 0.2, 0)[0][Loader(range(32), 0).draw(12)[10]]
    lines[at] = bad
    data = written(tmp_path / "x.jsonl", lines)
    if algo == "grpo":
        model = Path(shutil.copytree(model, tmp_path / "model"))
        tokenizer(bos_token=None).save_pretrained(model)
    with pytest.raises(ConfigError) as caught:
        train(algo, tmp_path / "run", data=data, model=model, stream=True)
    line = str(caught.value)
    assert line.startswith(f"{data}, line {at + 1}")
    assert words in line
    assert [path.name for path in all_of(tmp_path / "run")] == ["000000000000", "000000000002"]
    with pytest.raises(ConfigError):
        train(algo, tmp_path / "other", data=data, model=model)
    assert not (tmp_path / "other").exists()


def test_a_token_that_the_model_does_not_have() -> None:
    words = tokenizer()
    run = LanguageRun(held_out=0.2, stream=True)
    assert words.convert_tokens_to_ids("9") == 39
    plain = [{"prompt": "a", "completion": letter} for letter in "abcdefghijkl"]
    found = material(
        put(plain, {"prompt": "a", "completion": "9"}), "texts", Words(words, 2, 0), run, 64, 39, lambda text: None
    )
    assert "row 11: the tokenizer does not belong to the model" in refusal(lambda: list(found.learned))


def test_a_text_longer_than_its_row() -> None:
    found = made(put(rows(12), {"prompt": "a", "completion": "b " * 30}), stream=True, pack=16)
    assert "row 11: 1 of 1 texts are longer than the rows of 16 tokens" in refusal(lambda: list(found.learned))


def test_what_cannot_be_streamed(complaint: Complaint, model: Path, data: Path, tmp_path: Path) -> None:
    def said(algo: str, data: Path, *argv: object) -> str:
        few = ["--out", tmp_path / "run", "--max-tokens", 4, "--held-out", 0.2, "--stream", *argv]
        return complaint("language", algo, "--model", model, "--data", data, *few)

    assert "too_long is truncate, or error" in said("sft", data, "--too-long", "drop")
    bare = written(tmp_path / "y.jsonl", [{"prompt": "a"}] * 9)
    assert "exact_match needs the column answer" in said("grpo", bare, "--rewards", "exact_match")
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    assert "x.parquet' (split 'train') cannot be loaded" in said("sft", tmp_path / "x.parquet")
    assert "list(data.take" in refusal(lambda: opened(dataset(rows()).to_iterable_dataset()))
    assert "has no split 'test'" in refusal(lambda: opened({"train": rows()}, "test"))
    assert "there is no file" in refusal(lambda: opened(tmp_path / "none.jsonl"))
    assert "x.jsonl has no rows" in refusal(lambda: opened(written(tmp_path / "x.jsonl", ["", " "])))
    assert "the data set has no rows" in refusal(lambda: opened(dataset([])))


def test_rewards_get_the_columns_of_streamed_rows(train: Train, tmp_path: Path) -> None:
    seen = list[str]()

    def told(prompts: list[str], completions: list[str], answer: list[str]) -> list[float]:
        seen.extend(answer)
        return letters(prompts, completions)

    train("grpo", tmp_path / "run", reward=told, stream=True, steps=1, eval_every=0)
    assert seen
    assert set(seen) <= {row["answer"] for row in rows()}
