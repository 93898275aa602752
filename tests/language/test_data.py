"""Data sets in every format become the tokens that a policy meets, and what cannot is one clear line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proximo.errors import ConfigError, MissingExtra, UnknownName
from proximo.sources.text.examples import Example, digest, examples, limited, pad_id
from proximo.sources.text.formats import texts
from proximo.sources.text.reading import Table, read
from tests.language.tiny import tokenizer

ROWS = [{"prompt": "a b", "completion": "c", "answer": 1}, {"prompt": "d", "completion": "e f", "answer": 2}]
USER, REPLY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def table(rows: list[Any]) -> Table:
    return Table(rows, [f"x.jsonl, line {i + 1}" for i in range(len(rows))])


def made(kind: str, rows: list[Any], words: Any = None) -> list[Example]:
    words = words or tokenizer()
    return examples(texts(table(rows), kind, words), words)


def said(kind: str, rows: list[Any], words: Any = None) -> list[tuple[str, ...]]:
    """Prompt and answers, as the tokens' words."""
    words = words or tokenizer()
    return [
        tuple(" ".join(words.convert_ids_to_tokens(list(ids))) for ids in (each.prompt, *each.answers))
        for each in made(kind, rows, words)
    ]


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


# Reading


def stored(folder: Path, kind: str) -> Any:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(ROWS)
    if kind in ("jsonl", "json"):
        path = folder / f"rows.{kind}"
        path.write_text("\n\n".join(json.dumps(row) for row in ROWS) + "\n", encoding="utf-8-sig")
        return path
    if kind == "parquet":
        whole.to_parquet(folder / "rows.parquet")
        return str(folder / "rows.parquet")
    if kind == "saved":
        whole.save_to_disk(folder / "saved")
        return folder / "saved"
    if kind == "splits":
        datasets.DatasetDict({"train": whole}).save_to_disk(folder / "splits")
        return str(folder / "splits")
    return {"dataset": whole, "dict": {"train": whole}, "list": ROWS, "iterator": iter(ROWS)}[kind]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "saved", "splits", "dataset", "dict", "list", "iterator"])
def test_one_data_set_in_every_form(kind: str, tmp_path: Path) -> None:
    assert read(stored(tmp_path, kind)).rows == ROWS


def test_a_folder_of_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    stored(tmp_path / "data", "jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    assert read(tmp_path / "data").rows == ROWS


def test_a_hub_id_is_asked_of_datasets_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(*arguments: Any, **named: Any) -> Any:
        asked.append((arguments, named))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read("someone/some", "test", "main").rows == ROWS
    assert asked == [(("someone/some", "main"), {"split": "test"})]

    def fail(*arguments: Any, **named: Any) -> Any:
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    words = refusal(lambda: read("someone/some"))
    assert "someone/some" in words
    assert "ConnectionError: no network" in words


def test_rows_know_their_lines(tmp_path: Path) -> None:
    assert read(stored(tmp_path, "jsonl")).places == [f"{tmp_path}/rows.jsonl, line {i}" for i in (1, 3)]
    assert read(ROWS).places == ["the data, row 1", "the data, row 2"]


def test_what_is_no_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "x.jsonl"
    assert "there is no file" in refusal(lambda: read(path))
    for line, words in [
        ('{"a": ', "x.jsonl, line 3 is no JSON"),
        ("[1]", "line 3 is a list"),
        ("\xff", "line 3 is no"),
    ]:
        path.write_bytes(b'{"a": 1}\n\n' + line.encode("latin-1"))
        assert words in refusal(lambda: read(path))
    path.write_text("[" * 100_000)
    assert "line 1 is no JSON" in refusal(lambda: read(path))
    path.write_text("\n")
    assert "x.jsonl has no rows" in refusal(lambda: read(path))
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    assert "x.parquet is no parquet file" in refusal(lambda: read(tmp_path / "x.parquet"))
    assert "no rows" in refusal(lambda: read([]))
    assert "row 2 is a str" in refusal(lambda: read([{}, "a"]))
    assert "is a int" in refusal(lambda: read(3))
    assert "no split 'test'; it has train" in refusal(lambda: read({"train": ROWS}, "test"))
    streamed = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    assert "list(data.take" in refusal(lambda: read(streamed))


def test_a_library_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"\.\[language\]"):
        read("someone/some")
    (tmp_path / "x.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtra, match=r"\.\[language\]"):
        read(tmp_path / "x.parquet")


# Formats


def test_strings() -> None:
    assert said("completions", ROWS) == [("a b", "c </s>"), ("d", "e f </s>")]
    assert said("prompts", ROWS) == [("a b",), ("d",)]
    assert said("completions", [{"text": "a b c"}, {"text": "a"}]) == [("<s>", "a b c </s>"), ("<s>", "a </s>")]
    pair = {"prompt": "a", "chosen": "b c", "rejected": "d"}
    assert said("pairs", [pair]) == [("a", "b c </s>", "d </s>")]


def test_messages() -> None:
    row = {"prompt": [USER], "completion": [REPLY]}
    assert said("completions", [row]) == [("<user> a <assistant>", "b </s>")]
    assert said("prompts", [row]) == [("<user> a <assistant>",)]
    row = {"prompt": [USER], "chosen": [REPLY], "rejected": [{**REPLY, "content": "c d"}]}
    assert said("pairs", [row]) == [("<user> a <assistant>", "b </s>", "c d </s>")]
    begun = {"prompt": [USER, REPLY]}
    assert said("prompts", [begun]) == [("<user> a <assistant> b",)]  # which the policy goes on with


def test_every_turn_of_the_assistant_is_learned_once_given_all_before() -> None:
    row = {"messages": [USER, REPLY, USER, {**REPLY, "content": "c"}], "id": 7}
    first, second = said("completions", [row])
    assert first == ("<user> a <assistant>", "b </s>")
    assert second == ("<user> a <assistant> b </s> <user> a <assistant>", "c </s>")
    assert [each.columns for each in made("completions", [row])] == [{"id": 7}] * 2


def test_an_implicit_prompt_is_what_both_begin_with() -> None:
    pair = {"chosen": "a b c d", "rejected": "a b e"}
    assert [text[:2] for text in texts(table([pair]), "pairs", None)] == [("a b", (" c d", " e"))]
    lines = {"chosen": "a\nbc", "rejected": "a\nbd"}  # the words, not the letters
    assert [text[:2] for text in texts(table([lines]), "pairs", None)] == [("a\n", ("bc", "bd"))]
    longer = {"chosen": "a b", "rejected": "a b c"}
    assert said("pairs", [longer]) == [("a", "b </s>", "b c </s>")]
    assert said("pairs", [{"chosen": "a", "rejected": "b"}]) == [("<s>", "a </s>", "b </s>")]
    talk = {"chosen": [USER, REPLY], "rejected": [USER, {**REPLY, "content": "c"}]}
    assert said("pairs", [talk]) == [("<user> a <assistant>", "b </s>", "c </s>")]
    same = {"chosen": [USER, REPLY], "rejected": [USER, REPLY]}
    assert said("pairs", [same]) == [("<user> a <assistant>", "b </s>", "b </s>")]


def test_other_columns_travel_along() -> None:
    assert [each.columns for each in made("prompts", ROWS)] == [
        {"completion": "c", "answer": 1},
        {"completion": "e f", "answer": 2},
    ]
    assert [each.columns for each in made("completions", ROWS)] == [{"answer": 1}, {"answer": 2}]
    assert made("prompts", ROWS)[0].text == "a b"


def test_a_template_that_writes_a_prompt_otherwise_when_it_is_answered() -> None:
    words = tokenizer()
    turn = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    words.chat_template = turn + "{% if add_generation_prompt %}{{ 'x y' }}{% endif %}"
    row = {"prompt": [USER], "completion": [REPLY]}
    assert said("completions", [row], words) == [("a", "b </s>")]


WRONG: list[tuple[str, Any, str]] = [
    ("completions", {"prompt": "a", "answer": "b"}, "x.jsonl, line 2 has the columns prompt, answer; completions need"),
    ("completions", {"prompt": "a", "completion": None}, "completions need prompt + completion, or messages, or text"),
    ("prompts", {}, "has the columns none; prompts need prompt"),
    ("pairs", {"prompt": "a", "completion": "b"}, "pairs need prompt + chosen + rejected, or chosen + rejected"),
    ("prompts", {"prompt": 3}, "x.jsonl, line 2: prompt is '3', not a string or a list of messages"),
    ("prompts", {"prompt": []}, "not a string or a list of messages"),
    ("prompts", {"prompt": [{"role": "user"}]}, "not a string or a list of messages"),
    ("completions", {"prompt": "a", "completion": " "}, "x.jsonl, line 2: what should be learned is empty"),
    ("completions", {"text": ""}, "what should be learned is empty"),
    ("completions", {"prompt": [USER], "completion": [{**REPLY, "content": ""}]}, "what should be learned is empty"),
    ("completions", {"prompt": [USER], "completion": "b"}, "prompt is messages, completion is a string"),
    ("completions", {"messages": "a"}, "messages is a string"),
    ("completions", {"messages": [USER]}, "no turn of the assistant"),
    ("completions", {"messages": [REPLY]}, "no turn of the assistant that answers something"),
    ("completions", {"text": [USER]}, "call the column messages"),
    ("prompts", {"prompt": "a \ud83d"}, "half a character"),
    ("pairs", {"chosen": "a", "rejected": [USER]}, "one is a string and one messages"),
    ("pairs", {"chosen": [USER, REPLY], "rejected": [REPLY]}, "share no first message"),
]


@pytest.mark.parametrize(("kind", "row", "words"), WRONG, ids=[words for *_, words in WRONG])
def test_a_row_that_cannot_be(kind: str, row: Any, words: str) -> None:
    good = {"prompt": "a", "completion": "b", "chosen": "c", "rejected": "d"}
    assert words in refusal(lambda: made(kind, [good, row]))


def test_messages_without_a_template_and_a_template_that_refuses() -> None:
    row = {"prompt": [USER], "completion": [REPLY]}
    assert "no chat template" in refusal(lambda: made("completions", [row], tokenizer(chat=False)))
    words = tokenizer()
    words.chat_template = "{{ raise_exception('roles must alternate') }}"
    assert "refuses the messages: roles must alternate" in refusal(lambda: made("completions", [row], words))
    with pytest.raises(UnknownName, match="pairs"):
        made("pears", [row])


# Tokens


def test_every_answer_ends_with_one_eos_whoever_wrote_it() -> None:
    rows = [{"prompt": "a", "completion": text} for text in ("b", "b</s>", "b </s>", "b </s>\n ", "b\n")]
    assert {answer for _, answer in said("completions", rows)} == {"b </s>"}


def test_a_prompt_has_the_tokens_that_it_is_completed_from() -> None:
    """Here a prompt and what follows would melt into one word, so the answer's own tokens are taken."""
    row = {"prompt": "a", "completion": "b c"}
    assert said("completions", [row]) == [("a", "b c </s>")]
    (alone,) = said("prompts", [{"prompt": "a"}])
    assert alone == ("a",)


@pytest.mark.parametrize("bos", [False, True])
def test_bos_is_where_the_tokenizer_puts_it_and_never_within(bos: bool) -> None:
    words, first = tokenizer(bos=bos), ("<s> " if bos else "")
    assert said("completions", [{"prompt": "a", "completion": " b"}], words) == [(f"{first}a", "b </s>")]
    assert said("completions", [{"text": "a b"}], words) == [("<s>", "a b </s>")]
    if not bos:  # a text that brings its own
        assert said("completions", [{"text": "<s> a"}], words) == [("<s>", "a </s>")]
    row = {"prompt": [USER], "completion": [REPLY]}  # the template writes its own, and here none
    assert said("completions", [row], words) == [("<user> a <assistant>", "b </s>")]


def test_without_bos_a_text_begins_with_its_first_token_and_a_prompt_must_not_be_empty() -> None:
    words = tokenizer(bos_token=None)
    assert said("completions", [{"text": "a b"}, {"text": "c"}], words) == [("a", "b </s>"), ("c", "</s>")]
    pair = {"prompt": "", "chosen": "a", "rejected": "b"}
    assert "line 1: the prompt is empty" in refusal(lambda: made("pairs", [pair], words))
    assert "line 1: the prompt is empty" in refusal(lambda: made("prompts", [{"prompt": " "}], words))
    assert said("prompts", [{"prompt": ""}]) == [("<s>",)]


def test_a_tokenizer_that_puts_eos_behind_everything() -> None:
    from tokenizers.processors import TemplateProcessing

    words = tokenizer()
    words.backend_tokenizer.post_processor = TemplateProcessing(
        "$A </s>", special_tokens=[("</s>", words.eos_token_id)]
    )
    assert words("a")["input_ids"][-1] == words.eos_token_id
    assert said("completions", [{"prompt": "a", "completion": " b"}], words) == [("a", "b </s>")]
    assert said("prompts", [{"prompt": "a"}, {"prompt": "b </s>"}], words) == [("a",), ("b </s>",)]


def test_the_whole_text_is_learned_but_for_its_first_token() -> None:
    (example,) = made("completions", [{"prompt": "a b", "completion": " c"}])
    whole = example.whole()
    assert (list(whole.prompt), list(whole.answers[0])) == ([4], [5, 6, 2])


def test_pad_is_never_eos() -> None:
    """Trap 6: where pad is EOS, whoever masks pads unlearns to end."""
    notes = list[str]()
    words = tokenizer()
    assert pad_id(words, notes.append) == words.pad_token_id
    assert notes == []
    for special in ({"pad_token": None}, {"pad_token": "</s>"}, {"pad_token": "</s>", "unk_token": "</s>"}):
        words, notes = tokenizer(**special), []
        assert pad_id(words, notes.append) != words.eos_token_id
        assert len(notes) == 1
    words = tokenizer(pad_token=None)
    words.add_tokens(["<|pad|>"])
    assert words.convert_ids_to_tokens(pad_id(words, notes.append)) == "<|pad|>"
    same = tokenizer(pad_token="</s>", unk_token="</s>", bos_token="</s>")  # one token for all, as in GPT-2
    assert pad_id(same, notes.append) != same.eos_token_id == 0
    assert made("completions", [{"prompt": "a", "completion": " b"}], same)[0].answers[0][-1] == same.eos_token_id
    with pytest.raises(ConfigError, match="no EOS"):
        pad_id(tokenizer(eos_token=None), notes.append)
    with pytest.raises(ConfigError, match="no EOS"):
        made("prompts", ROWS, tokenizer(eos_token=None))


def test_lengths_are_kept_and_every_cut_is_said() -> None:
    rows = [{"prompt": "a b c", "completion": " d"}, {"prompt": "a", "completion": " b c d"}]
    found, notes = made("completions", rows), list[str]()
    assert limited(found, 3, 4, "error", notes.append) == limited(found, None, None, "error", notes.append) == found
    assert notes == []
    told = refusal(lambda: limited(found, 2, None, "error", notes.append))
    assert "1 of 2 prompts are longer than 2 tokens (the longest has 3)" in told
    assert "drop" in told
    cut, other = limited(found, 2, 2, "truncate", notes.append)
    assert [list(cut.prompt), list(other.answers[0])] == [[5, 6], [5, 6]]  # the prompt's end, no EOS
    assert notes == [
        "1 of 2 prompts are longer than 2 tokens: cut at the left",
        "1 of 2 answers are longer than 2 tokens: cut at the right",
    ]
    assert limited(found, 2, None, "drop", notes.append) == found[1:]
    assert "dropped" in notes[-1]
    assert "no example is left" in refusal(lambda: limited(found, 2, 2, "drop", notes.append))
    assert "max_prompt is 0" in refusal(lambda: limited(found, 0, 2, "truncate", notes.append))


def test_the_digest_knows_tokens_order_and_columns() -> None:
    found = made("completions", ROWS)
    others = [found[::-1], found[:1], made("completions", [{**ROWS[0], "answer": 3}, ROWS[1]])]
    assert digest(found) == digest(made("completions", ROWS))
    assert len({digest(each) for each in [found, *others]}) == 4
