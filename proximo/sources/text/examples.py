"""Texts as tokens: what is learned, or begun with, one example at a time."""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from proximo.errors import ConfigError
from proximo.sources.text.formats import Text
from proximo.sources.text.padding import Ids

TooLong = Literal["error", "drop", "truncate"]
BATCH = 1_000  # texts that a tokenizer gets at once


@dataclass(frozen=True)
class Example:
    """A prompt and what answers it, in tokens; the answers end with EOS, unless they were cut."""

    prompt: Ids  # never empty: a policy chooses after a token
    answers: tuple[Ids, ...]  # none, a completion, or a chosen and a rejected one
    text: str  # the prompt, as a reward function gets it
    columns: dict[str, Any]  # the row's others

    def whole(self) -> Example:
        """All of the text as what is learned, after its first token: for SFT that is not of completions only."""
        (answer,) = self.answers
        return replace(self, prompt=self.prompt[:1], answers=(ids(*self.prompt[1:], *answer),))


def ids(*tokens: int) -> Ids:
    """Token ids in four bytes each; a list takes ten times as much."""
    return array("i", tokens)


def examples(texts: Sequence[Text], tokenizer: Any) -> list[Example]:
    """Texts as tokens, in order.

    A prompt has the same tokens here as where it is completed: those of itself alone, with what the tokenizer puts
    before a text (BOS; chat templates write their own). An answer has the tokens it has behind the prompt, if the
    prompt's are the same there; else its own. Then EOS, once. A text without a prompt has its first token for one.

    Raises ConfigError for a tokenizer without EOS, and for an empty prompt where there is no BOS to begin with.
    """
    end, bos = eos_id(tokenizer), tokenizer.bos_token_id
    prompts = _encoded(tokenizer, [(text.prompt, not text.rendered) for text in texts])
    found = []
    for text, prompt, tails in zip(texts, prompts, _answers(texts, prompts, tokenizer), strict=True):
        if not prompt and bos is not None:
            prompt, tails = [bos], [tail[tail[:1] == [bos] :] for tail in tails]
        elif not prompt and not text.prompt and len(tails) == 1:
            prompt, tails = tails[0][:1], [tails[0][1:]]
        if not prompt:
            raise ConfigError(f"{text.place}: the prompt is empty, and the tokenizer has no BOS token to begin with")
        found.append(Example(ids(*prompt), tuple(ids(*tail, end) for tail in tails), text.prompt, text.columns))
    return found


def _answers(texts: Sequence[Text], prompts: Sequence[list[int]], tokenizer: Any) -> list[list[list[int]]]:
    """The tokens of every text's answers, without EOS."""
    flat = [
        (text, prompt, _without_end(answer, tokenizer.eos_token))
        for text, prompt in zip(texts, prompts, strict=True)
        for answer in text.answers
    ]
    joint = _encoded(tokenizer, [(text.prompt + answer, not text.rendered) for text, _, answer in flat])
    parts = [whole[: len(prompt)] == prompt for whole, (_, prompt, _) in zip(joint, flat, strict=True)]
    rest = [(answer, False) for (*_, answer), apart in zip(flat, parts, strict=True) if not apart]
    alone = iter(_encoded(tokenizer, rest))
    tails = [w[len(p) :] if apart else next(alone) for w, (_, p, _), apart in zip(joint, flat, parts, strict=True)]
    following = iter(tails)
    return [[next(following) for _ in text.answers] for text in texts]


def _without_end(answer: str, mark: str) -> str:
    """Chat templates write EOS themselves, and a line break behind it that nobody generates."""
    ended = (text for text in (answer, answer.rstrip()) if text.endswith(mark))
    return next(ended, answer + mark).removesuffix(mark)


def _encoded(tokenizer: Any, texts: Sequence[tuple[str, bool]]) -> list[list[int]]:
    """Token ids of (text, whether the tokenizer adds its special tokens), without an EOS that it puts at the end."""
    probe = [tokenizer("a", add_special_tokens=special)["input_ids"][-1:] for special in (True, False)]
    ends = probe[0] == [tokenizer.eos_token_id] != probe[1]
    found: list[list[int]] = [[] for _ in texts]
    for special in (False, True):
        places = [i for i, (_, add) in enumerate(texts) if add is special]
        for first in range(0, len(places), BATCH):
            some = places[first : first + BATCH]
            tokens = tokenizer([texts[i][0] for i in some], add_special_tokens=special, verbose=False)["input_ids"]
            for i, each in zip(some, tokens, strict=True):
                found[i] = list(each[: len(each) - (special and ends)])
    return found


def eos_id(tokenizer: Any) -> int:
    """The token that ends a text; ConfigError where the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has no EOS token, so no text could end: set tokenizer.eos_token")
    return tokenizer.eos_token_id


def pad_id(tokenizer: Any, say: Callable[[str], object]) -> int:
    """A token to fill rows with that is not EOS, so that nobody who meets it takes it for the end of a text.

    It is the tokenizer's own pad token; where that is missing, or EOS as in many, a token that is made for it, or UNK,
    or any other, which `say` is told. Nothing is learned from it: masks are made of lengths, never of tokens.
    """
    end, own = eos_id(tokenizer), tokenizer.pad_token_id
    if own is not None and own != end:
        return own
    known = tokenizer.get_vocab()
    made = [token for token in known if "pad" in token.lower() and token.startswith(("<", "[")) and token[-1] in ">]"]
    spare = [known[token] for token in sorted(made, key=lambda token: (len(token), token))] + [
        tokenizer.unk_token_id,
        0,
        1,
    ]
    pad = next(token for token in spare if token is not None and token != end)
    why = "is EOS" if own == end else "is missing"
    say(f"the tokenizer's pad token {why}: rows are filled with {tokenizer.convert_ids_to_tokens(pad)!r} ({pad})")
    return pad


def limited(
    found: Sequence[Example],
    max_prompt: int | None,
    max_answer: int | None,
    too_long: TooLong,
    say: Callable[[str], object],
    context: int | None = None,
) -> list[Example]:
    """Examples whose prompts have at most `max_prompt` tokens and whose answers `max_answer`, EOS included.

    Prompt and answer together have at most `context`.
    `too_long` is what becomes of a longer prompt: "error"; "drop" the example; "truncate" it from the left, so that its
    end is what is answered. A longer answer is dropped as well with "drop", else cut at the right, and is then without
    EOS. `say` is told how many of each there were.

    Raises ConfigError, with their number, for prompts that are too long, and where nothing is left.
    """
    for name, limit in (("max_prompt", max_prompt), ("max_answer", max_answer)):
        if limit is not None and limit < 1:
            raise ConfigError(f"{name} is {limit}: there must be room for a token")
    long_prompt = [max_prompt is not None and len(each.prompt) > max_prompt for each in found]
    rooms = [answer_room(min(len(each.prompt), max_prompt or len(each.prompt)), max_answer, context) for each in found]
    long_answer = [any(len(a) > most for a in each.answers) for each, most in zip(found, rooms, strict=True)]
    prompts, answers, drop = sum(long_prompt), sum(long_answer), too_long == "drop"
    of = f"of {len(found)}"
    if prompts and too_long == "error":
        longest = max(len(each.prompt) for each in found)
        words = f"{prompts} {of} prompts are longer than {max_prompt} tokens (the longest has {longest})"
        if len(found) == 1:
            words = f"the prompt has {longest} tokens, more than {max_prompt}"
        raise ConfigError(f"{words}: drop them (--too-long drop), cut them at the left (truncate), or make room")
    if prompts:
        say(f"{prompts} {of} prompts are longer than {max_prompt} tokens: {'dropped' if drop else 'cut at the left'}")
    if answers:
        limit = f"{max_answer} tokens" if max_answer else f"the model's context of {context} tokens leaves"
        say(f"{answers} {of} answers are longer than {limit}: {'dropped' if drop else 'cut at the right'}")
    if drop:
        kept = [i for i, (p, a) in enumerate(zip(long_prompt, long_answer, strict=True)) if not p and not a]
        found, rooms = [found[i] for i in kept], [rooms[i] for i in kept]
        if not found:
            raise ConfigError(f"no example is left: all are longer than {max_prompt} and {max_answer} tokens")
    return [
        replace(e, prompt=e.prompt[-(max_prompt or 0) :], answers=tuple(a[:most] for a in e.answers))
        for e, most in zip(found, rooms, strict=True)
    ]


def answer_room(prompt: int, max_answer: int | None, context: int | None) -> int:
    """Tokens that an answer to a prompt of so many may have."""
    return min(max_answer or sys.maxsize, sys.maxsize if context is None else context - prompt)


def digest(found: Sequence[Example]) -> str:
    """A name for these examples in this order, 16 hexadecimal digits of SHA-256: a position means nothing in others."""
    hashed = hashlib.sha256()
    for each in found:
        parts = [list(each.prompt), [list(answer) for answer in each.answers], each.columns]
        hashed.update(json.dumps(parts, sort_keys=True, default=str).encode() + b"\n")
    return hashed.hexdigest()[:16]
