"""What a run of a language model is made from: tokenizer, examples to learn from, examples held out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from proximo.errors import ConfigError
from proximo.models.language.hub import tokenizer_of
from proximo.run.language.plan import LanguageRun
from proximo.sources.text.examples import Example, TooLong, digest, eos_id, examples, limited, pad_id
from proximo.sources.text.formats import Text, texts
from proximo.sources.text.loader import held_out, parted
from proximo.sources.text.reading import Table, read
from proximo.sources.text.streaming import opened, owners, streamed

FORMATS = {"completions": "prompts", "texts": "completions", "pairs": "pairs"}  # of what an algorithm learns from
PROBED = 64  # examples whose tokens tell a tokenizer from another, where not all are read
Say = Callable[[str], object]


@dataclass(frozen=True)
class Words:
    """A tokenizer, and the two tokens that a run must know."""

    tokenizer: Any
    eos: int
    pad: int

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


def words_of(path: Path, say: Say = lambda text: None) -> Words:
    """The words of the model in a folder."""
    tokenizer = tokenizer_of(path)
    return Words(tokenizer, eos_id(tokenizer), pad_id(tokenizer, say))


@dataclass(frozen=True)
class Material:
    """Examples to learn from, and those that are held out to evaluate on."""

    learned: Sequence[Example]
    held: Sequence[Example]
    digest: str  # of the data set and what a run makes of it
    columns: frozenset[str]  # that prompts have beside; of streamed ones the first
    conversation: bool = False  # whether prompts were messages; of streamed ones the first


def material(
    data: Any,
    kind: str,
    words: Words,
    run: LanguageRun,
    context: int | None,
    vocabulary: int,
    say: Say,
    all_held: bool = False,
) -> Material:
    """A data set as examples; `kind` is what the algorithm learns from, `context` the model's longest row, tokens.

    With `all_held` nothing is to be learned, and all of it is to be evaluated on.

    Raises ConfigError for a data set without what is needed, for texts that do not fit, and for tokens that a model of
    a `vocabulary` of so many does not have.
    """
    longest = room(run, context)
    tell = (lambda text: None) if run.stream else say  # or each would be told of alone

    def made(written: Sequence[Text]) -> list[Example]:
        found = examples(written, words.tokenizer)
        found = limited(found, longest, run.max_tokens, run.too_long, tell, context)
        if run.whole_text and kind == "texts":
            found = [each.whole() for each in found]
        if run.pack is not None:
            found = packable(found, run.pack, run.too_long, tell)
        must_fit(found, vocabulary, words)
        return found

    if run.stream:
        return drawn_from(data, FORMATS[kind], words, run, made, all_held)
    table = read(data)
    parts = (table, table) if all_held else held_out(table, run.held_out, run.seed)
    written = [texts(part, FORMATS[kind], words.tokenizer) for part in parts]
    learned, held = (made(part) for part in written)
    columns = frozenset(name for each in learned for name in each.columns)
    return Material(learned, held, digest([*learned, *held]), columns, all(text.rendered for text in written[0]))


def drawn_from(
    data: Any, kind: str, words: Words, run: LanguageRun, made: Callable[[list[Text]], list[Example]], all_held: bool
) -> Material:
    """Examples that are made when they are drawn; the digest is that of the rows, and of a few as tokens."""
    table, name = opened(data)
    size = len(table.rows)
    parts = (np.arange(size),) * 2 if all_held else parted(size, run.held_out, run.seed)
    each = owners(table, kind, parts)
    learned, held = (streamed(table, owner, kind, words.tokenizer, made) for owner in each)
    named = hashlib.sha256(f"{name} {digest(held[:PROBED])}".encode()).hexdigest()[:16]
    text = texts(Table(table.rows[:1], table.places[:1]), kind, words.tokenizer)[0]
    return Material(learned, held, named, frozenset(text.columns), text.rendered)


def must_fit(found: Sequence[Example], vocabulary: int, words: Words) -> None:
    """ConfigError for a token that a model of so many words does not have."""
    used = (max(ids) for each in found for ids in (each.prompt, *each.answers) if len(ids))
    if (most := max(words.eos, words.pad, *used)) >= vocabulary:
        text = f"the tokenizer does not belong to the model, which has {vocabulary:,} tokens"
        raise ConfigError(f"{text}: {words.tokenizer.convert_ids_to_tokens(most)!r} is number {most:,}")


def packable(found: list[Example], pack: int, too_long: TooLong, say: Say) -> list[Example]:
    """The texts that fit into rows of `pack` tokens; ConfigError, with their number, where others are not dropped."""
    fitting = [each for each in found if len(each.prompt) + len(each.answers[0]) - 1 <= pack]
    if count := len(found) - len(fitting):
        told = f"{count} of {len(found)} texts are longer than the rows of {pack} tokens that they are packed into"
        if too_long != "drop" or not fitting:
            raise ConfigError(f"{told}: give a larger --pack, limit --max-tokens, or drop them (--too-long drop)")
        say(f"{told}: dropped")
    return fitting


def room(run: LanguageRun, context: int | None) -> int | None:
    """Tokens that a prompt may have."""
    if context is None:
        return run.max_prompt
    left = context - (run.max_tokens or 1)
    if left < 1:
        raise ConfigError(f"max_tokens is {run.max_tokens}, but the model's context has {context} tokens in all")
    if run.max_prompt is not None and run.max_prompt > left:
        raise ConfigError(
            f"max_prompt {run.max_prompt} and max_tokens {run.max_tokens} do not fit into the model's {context} tokens"
        )
    return run.max_prompt or left
