"""What a run of a language model is made from: tokenizer, examples to learn from, examples held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proximo.errors import ConfigError
from proximo.models.language.hub import tokenizer_of
from proximo.run.language.plan import LanguageRun
from proximo.sources.text.examples import Example, TooLong, digest, eos_id, examples, limited, pad_id
from proximo.sources.text.formats import texts
from proximo.sources.text.loader import held_out
from proximo.sources.text.reading import read

FORMATS = {"completions": "prompts", "texts": "completions", "pairs": "pairs"}  # of what an algorithm learns from
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

    learned: list[Example]
    held: list[Example]
    conversation: bool = False  # whether prompts were messages

    def must_fit(self, vocabulary: int, words: Words) -> None:
        """ConfigError for a token that a model of so many words does not have."""
        used = (max(ids) for each in (*self.learned, *self.held) for ids in (each.prompt, *each.answers) if len(ids))
        if (most := max(words.eos, words.pad, *used)) >= vocabulary:
            text = f"the tokenizer does not belong to the model, which has {vocabulary:,} tokens"
            raise ConfigError(f"{text}: {words.tokenizer.convert_ids_to_tokens(most)!r} is number {most:,}")

    @property
    def digest(self) -> str:
        return digest([*self.learned, *self.held])


def material(
    data: Any, kind: str, words: Words, run: LanguageRun, context: int | None, say: Say, all_held: bool = False
) -> Material:
    """A data set as examples; `kind` is what the algorithm learns from, `context` the model's longest row, tokens.

    With `all_held` nothing is to be learned, and all of it is to be evaluated on.

    Raises ConfigError for a data set without what is needed, and for texts that do not fit.
    """
    table = read(data)
    parts = (table, table) if all_held else held_out(table, run.held_out, run.seed)
    written = [texts(part, FORMATS[kind], words.tokenizer) for part in parts]
    longest = room(run, context)
    learned, held = (
        limited(examples(part, words.tokenizer), longest, run.max_tokens, run.too_long, say, context)
        for part in written
    )
    if run.whole_text and kind == "texts":
        learned, held = ([each.whole() for each in part] for part in (learned, held))
    if run.pack is not None:
        learned, held = (packable(part, run.pack, run.too_long, say) for part in (learned, held))
    return Material(learned, held, all(text.rendered for text in written[0]))


def packable(found: list[Example], pack: int, too_long: TooLong, say: Say) -> list[Example]:
    """The texts that fit into rows of `pack` tokens; ConfigError, with their number, where others are not dropped."""
    fitting = [each for each in found if len(each.prompt) + len(each.answers[0]) - 1 <= pack]
    if count := len(found) - len(fitting):
        told = f"{count} of {len(found)} texts are longer than the rows of {pack} tokens that they are packed into"
        if too_long != "drop" or not fitting:
            raise ConfigError(f"{told}: give a larger pack, limit max_tokens, or drop them (too_long)")
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
