"""TRL in the language benchmark. A step ends where its callback says so; layers are not computed again (its default).

`--pieces` is its per_device_train_batch_size, the rest of a step accumulated: the same gradient from the same step.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:1] = []  # this file must hide no namesake
sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
import trl
from datasets import load_dataset
from language_measure import asked, report
from language_works import COMPLETION, THREADS, Work, worth
from transformers import AutoTokenizer, TrainerCallback

KINDS: dict[str, tuple[str, str]] = {
    "grpo": ("GRPOTrainer", "GRPOConfig"),
    "rloo": ("RLOOTrainer", "RLOOConfig"),
    "dpo": ("DPOTrainer", "DPOConfig"),
    "sft": ("SFTTrainer", "SFTConfig"),
    "reward": ("RewardTrainer", "RewardConfig"),
}


class Clock(TrainerCallback):
    """The seconds between the ends of steps."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.last = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        self.steps.append(now - self.last)
        self.last = now


def config(work: Work, precision: str, seed: int, pieces: int | None, folder: str) -> Any:
    """Settings as Proximo's script has them; what is not named is TRL's default."""
    lanes = work.rows * work.group
    special: dict[str, Any] = {}
    if work.group > 1:
        special = dict(num_generations=work.group, max_completion_length=COMPLETION, beta=work.beta, top_k=0)
    if work.name == "dpo":
        special = dict(beta=work.beta)
    if work.name == "reward":
        special = dict(center_rewards_coefficient=0.01)
    return getattr(trl, KINDS[work.name][1])(
        output_dir=folder,
        per_device_train_batch_size=pieces or lanes,
        gradient_accumulation_steps=lanes // (pieces or lanes),
        max_steps=work.warm + work.steps,
        learning_rate=work.lr,
        lr_scheduler_type="constant",
        seed=seed,
        use_cpu=True,
        bf16=precision == "bfloat16",
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=10**6,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **special,
    )


def main() -> None:
    work, precision, material, seed, pieces = asked()
    torch.set_num_threads(THREADS)
    data = load_dataset("json", data_files=str(material / f"{work.name}.jsonl"), split="train")
    clock, drawing = Clock(), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        more = dict(reward_funcs=worth) if work.group > 1 else {}
        trainer = getattr(trl, KINDS[work.name][0])(
            model=str(material / "model"),
            args=config(work, precision, seed, pieces, folder),
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(material / "model"),
            callbacks=[clock],
            **more,
        )
        if work.group > 1:
            generate = trainer._generate

            def timed(*args: Any, **kwargs: Any) -> Any:
                begin = time.perf_counter()
                found = generate(*args, **kwargs)
                drawing.append(time.perf_counter() - begin)
                return found

            trainer._generate = timed
        trainer.train()
    report("trl", work, precision, clock.steps, drawing, seed=seed, pieces=pieces)


if __name__ == "__main__":
    main()
