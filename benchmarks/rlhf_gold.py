"""What benchmarks/rlhf.py learns from: the text, a tokenizer and a model for it, and the gold reward that is hidden."""

from __future__ import annotations

import hashlib
import pydoc_data.topics
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

VOCABULARY, CONTEXT, BEGINNING = 768, 96, 4  # tokens, tokens, words of a prompt
END, PAD = "</s>", "<pad>"
NAME = re.compile(r'"[^"\s]+"')  # a piece of code in quotes, as the documentation writes it


def text() -> str:
    """The language reference that comes with Python: what `help("topics")` shows. It differs by Python's version."""
    topics: dict[str, str] = pydoc_data.topics.topics
    return "\n\n".join(topics[name] for name in sorted(topics))


def digest() -> str:
    """SHA-256 of the text."""
    return hashlib.sha256(text().encode()).hexdigest()


def sentences() -> list[str]:
    """Its sentences of 7 to 18 words, each once."""
    paragraphs = (re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text()))
    parts = (each for part in paragraphs for each in re.split(r'(?<=[.!?:;]) (?=[A-Za-z"(])', part))
    return [
        each for each in dict.fromkeys(parts) if each[0].isalpha() and each[-1] == "." and 7 <= len(each.split()) <= 18
    ]


def cut(sentence: str) -> dict[str, str]:
    """A sentence as a prompt, its first words, and a completion."""
    words = sentence.split(" ")
    return {"prompt": " ".join(words[:BEGINNING]), "completion": " " + " ".join(words[BEGINNING:])}


def gold(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """The reward that preferences come from, and that nobody who learns may see: a reader's taste.

    A quoted name or two are welcome, more are in the way; about nine words are enough; words that were there already
    and words that the documentation does not have annoy; a sentence should come to its full stop. Names and length have
    a best value, beyond which a reward model that saw few examples goes on to ask for more, or for less.
    """
    return [taste(completion) for completion in completions]


def taste(completion: str) -> float:
    pieces = completion.lower().split()
    count = max(len(pieces), 1)
    names, length = len(NAME.findall(completion)), len(pieces)
    again = (count - len(set(pieces))) / count
    strange = sum(piece.strip(AROUND) not in KNOWN for piece in pieces) / count
    welcome = (0.0, 1.0, 1.5)[names] if names < 3 else 1.5 - (names - 2)
    return welcome - ((length - 9) / 5) ** 2 - 6 * again - 6 * strange + completion.endswith(".")


AROUND = "\"'.,:;()*`’"  # a word stands for itself whatever is around it; a mark alone is no word
KNOWN = frozenset(piece.strip(AROUND) for piece in text().lower().split()) - {""}


def base(folder: Path, seed: int) -> int:
    """Write a tokenizer that was trained on the text, and a small Llama that was not; returns its parameters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[PAD, END], initial_alphabet=alphabet, show_progress=False
    )
    words.train_from_iterator([text()], trainer)
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token=PAD, eos_token=END).save_pretrained(folder)
    shape: dict[str, Any] = dict(
        hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, tie_word_embeddings=True
    )
    torch.manual_seed(seed)
    ends: dict[str, Any] = dict(pad_token_id=0, bos_token_id=None, eos_token_id=1)
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, **ends, **shape)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return sum(weights.numel() for weights in model.parameters())
