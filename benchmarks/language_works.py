"""The works of the language benchmark: what both libraries do alike, and the model and data that both read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS, PROMPT, COMPLETION = 512, 32, 64  # the vocabulary; tokens of every prompt and completion, the end of text in it
EXAMPLES = 512
THREADS = 2


@dataclass(frozen=True)
class Work:
    """A way to learn; `rows` are the examples of a step, and of each prompt so many completions."""

    name: str
    said: str
    steps: int  # that are timed, after `warm` others
    rows: int = 32
    group: int = 1
    beta: float = 0.0
    lr: float = 1e-6
    warm: int = 2


WORKS = {
    work.name: work
    for work in (
        Work("grpo", "GRPO, 32 prompts × 8 completions × 64 tokens, one gradient step, no reference", 4, group=8),
        Work("rloo", "RLOO, the same, with the KL to a reference in the reward", 4, group=8, beta=0.05),
        Work("dpo", "DPO, 32 pairs of 32 + 64 tokens, the reference evaluated in every step", 12, beta=0.1),
        Work("sft", "SFT, 32 texts of 32 + 64 tokens, completions alone learned", 16),
        Work("reward", "reward model, 32 pairs of 32 + 64 tokens, centred", 12),
    )
}


def words(seed: int, count: int) -> str:
    """A text of so many words; the seed decides."""
    import random

    return " ".join(f"w{random.Random(seed * 1000 + i).randrange(2, WORDS)}" for i in range(count))


def material(folder: Path) -> None:
    """A GPT-2 of 3.3 million weights with its tokenizer, and the data of every work; once."""
    if (folder / "model" / "tokenizer.json").exists():
        return
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    shape: dict[str, Any] = dict(vocab_size=WORDS, n_positions=128, n_embd=256, n_layer=4, n_head=4)
    calm: dict[str, Any] = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    ends: dict[str, Any] = dict(bos_token_id=1, eos_token_id=1, pad_token_id=0)
    GPT2LMHeadModel(GPT2Config(**shape, **calm, **ends)).save_pretrained(folder / "model")
    names = ["<pad>", "</s>", *(f"w{i}" for i in range(2, WORDS))]
    spoken = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="w2"))
    spoken.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=spoken, pad_token="<pad>", eos_token="</s>")
    for work in WORKS:
        rows = [example(work, i) for i in range(EXAMPLES)]
        (folder / f"{work}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer.save_pretrained(folder / "model")


def example(work: str, number: int) -> dict[str, str]:
    """One row of a data set; both libraries add the end of text to completions."""
    prompt, first, second = (words(3 * number + i, length) for i, length in enumerate((PROMPT, *2 * (COMPLETION - 1,))))
    if work in ("grpo", "rloo"):
        return {"prompt": prompt}
    # the space belongs to the completion: where texts are joined before they are cut into tokens, words stay words
    return {"prompt": prompt, **({"completion": " " + first} if work == "sft" else pair(first, second))}


def pair(chosen: str, rejected: str) -> dict[str, str]:
    return {"chosen": " " + chosen, "rejected": " " + rejected}


def worth(completions: list[str], **columns: Any) -> list[float]:
    """The reward of both: how many different words a completion has, a share."""
    return [len({*text.split()}) / COMPLETION for text in completions]
