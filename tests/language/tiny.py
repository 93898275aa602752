"""A tokenizer of a few words and models of a few thousand numbers, made here: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [*"abcdefghijklmnopqrstuvwxyz0123456789", "+", "=", "<user>", "<assistant>"]
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ ' ' + eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def tokenizer(chat: bool = True, bos: bool = False, **special: str | None) -> Any:
    """Words between white space; `special` exchanges tokens or, with None, leaves them out; `bos` before every text."""
    names = {key: word for key, word in {**SPECIAL, **special}.items() if word is not None}
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*names.values(), *WORDS]))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=names.get("unk_token", "a")))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        first = names["bos_token"]
        words.post_processor = processors.TemplateProcessing(f"{first} $A", special_tokens=[(first, vocabulary[first])])
    made = PreTrainedTokenizerFast(tokenizer_object=words, **names)
    made.chat_template = TEMPLATE if chat else None
    return made


def llama(vocabulary: int = 44, seed: int = 0, context: int = 64) -> Any:
    """A Llama of two layers and 16 features, in float32, in evaluation mode."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    ends: dict[str, Any] = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=context, **shape, **ends)
    return LlamaForCausalLM(config).eval()


def gpt2(vocabulary: int = 44, seed: int = 0, context: int = 64) -> Any:
    """A GPT-2 of two layers and 16 features, with dropout in its configuration, in evaluation mode."""
    torch.manual_seed(seed)
    ends: dict[str, Any] = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    config = GPT2Config(vocab_size=vocabulary, n_positions=context, n_embd=16, n_layer=2, n_head=2, **ends)
    return GPT2LMHeadModel(config).eval()
