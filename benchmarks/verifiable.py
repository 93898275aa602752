"""Tasks whose answers can be checked: sort, reverse, add. A weak imitation first, then rewards: 1 if right, else 0.

    python benchmarks/verifiable.py [--only sort grpo …] [--seeds 5] [--jobs 1] [--work runs/verifiable] [--table]

A small Llama is trained on some answers until it is right now and then; PPO, GRPO, RLOO and Asymmetric PPO go on from
there, on prompts alone. Results are added to benchmarks/results/verifiable.json as they come; a run that was stopped
goes on from its last checkpoint, one that is done is not run again. `--table` writes verifiable.md and its picture.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine, versions

from proximo import language
from proximo.run.folder import read_rows

RESULTS = Path(__file__).parent / "results"
LETTERS, DIGITS = "abcdefgh", "0123456789"
TASKS = ("sort", "reverse", "add")
PROMPTS, ANSWERS = 4_000, 12  # of a data set; tokens of an answer at most, EOS included
SHAPE: dict[str, Any] = dict(hidden_size=64, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4)
IMITATE: dict[str, Any] = dict(lr=2e-3, batch=64)
UPDATES = {"sort": 150, "reverse": 350, "add": 700}  # of imitation: right about every other time
COMMON: dict[str, Any] = dict(
    steps=100, batch=64, group=8, max_tokens=ANSWERS, lr=3e-4, epochs=2, eval_every=10, eval_prompts=200
)
ALGOS: dict[str, dict[str, Any]] = {
    "ppo": dict(beta=0.01, value_coef=0.5, minibatches=1),
    "grpo": dict(beta=0.0),
    "rloo": dict(beta=0.0),
    "asymmetric_ppo": dict(beta=0.01, value_coef=0.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=[*TASKS, *ALGOS], default=[], metavar="TASK|ALGO")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/verifiable"))
    parser.add_argument("--results", type=Path, default=RESULTS / "verifiable.json")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        tasks = [task for task in TASKS if task in args.only or not set(args.only) & set(TASKS)]
        algos = [algo for algo in ALGOS if algo in args.only or not set(args.only) & set(ALGOS)]
        begun = [(task, seed) for seed in range(args.seeds) for task in tasks]
        wanted = [(task, algo, seed) for task, seed in begun for algo in algos]
        with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(imitated, *zip(*[(*one, args.work) for one in begun], strict=True)))
            for row in pool.map(rewarded, *zip(*[(*one, args.work) for one in wanted], strict=True)):
                keep(args.results, row)
                print(
                    f"{row['task']} {row['algo']} {row['seed']}: {row['before']:.2f} -> {row['after']:.2f}", flush=True
                )
    write_table(args.results)


def examples(task: str, seed: int) -> list[dict[str, str]]:
    """Prompts and their answers, none of them twice; symbols are words of their own."""
    rng = np.random.default_rng([seed, TASKS.index(task)])
    rows: dict[str, str] = {}
    while len(rows) < PROMPTS:
        if task == "add":
            a, b = (int(x) for x in rng.integers(0, 100, 2))
            prompt, answer = f"{a}+{b}=", str(a + b)[::-1]  # the lowest digit first, as one adds
        else:
            word = "".join(rng.choice(list(LETTERS), rng.integers(4, 9)))
            prompt, answer = f"{word}=", "".join(sorted(word)) if task == "sort" else word[::-1]
        rows[" ".join(prompt)] = " ".join(answer)
    return [dict(prompt=prompt, completion=answer, answer=answer) for prompt, answer in rows.items()]


def fresh_model(path: Path, seed: int) -> None:
    """A Llama that knows nothing, and a tokenizer of single symbols."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", *LETTERS, *DIGITS, "+", "="])}
    symbols = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    symbols.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=len(words), max_position_embeddings=32, pad_token_id=0, bos_token_id=1,
                         eos_token_id=2, tie_word_embeddings=True, **SHAPE)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=symbols, **special).save_pretrained(path)


def folder(work: Path, task: str, seed: int, what: str, *settings: Any) -> Path:
    """Of a run with these settings: a run with others is another."""
    told = json.dumps([SHAPE, PROMPTS, *settings], sort_keys=True)
    return work / f"{task}-{seed}-{what}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def imitating(task: str, seed: int) -> dict[str, Any]:
    more = dict(steps=UPDATES[task], eval_every=0, max_tokens=ANSWERS, seed=seed, threads=1, quiet=True)
    return {**IMITATE, **more}


def imitated(task: str, seed: int, work: Path) -> Path:
    """The model that has seen some answers."""
    settings = imitating(task, seed)
    base, out = folder(work, task, seed, "base"), folder(work, task, seed, "imitated", settings)
    if not base.exists():
        fresh_model(base, seed)
    run(out, lambda: language.train(base, examples(task, seed), "sft", out=out, **settings), task, seed)
    return out


def rewarded(task: str, algo: str, seed: int, work: Path) -> dict[str, Any]:
    """One run of an algorithm, from the imitation on; what is kept of it."""
    begin = time.perf_counter()
    settings: dict[str, Any] = COMMON | ALGOS[algo] | dict(seed=seed, threads=1, rewards=("exact_match",), quiet=True)
    model = folder(work, task, seed, "imitated", imitating(task, seed))
    out = folder(work, task, seed, algo, imitating(task, seed), settings)
    before = language.evaluate(model, examples(task, seed), settings["eval_prompts"], rewards=("exact_match",)).score
    run(out, lambda: language.train(model, examples(task, seed), algo, out=out, **settings), task, seed)
    rows, evals = read_rows(out / "metrics.jsonl"), read_rows(out / "eval.jsonl")
    return {
        "task": task,
        "algo": algo,
        "seed": seed,
        "before": before.mean,
        "after": evals[-1]["return_mean"],
        "kl_ref": evals[-1].get("kl_ref"),
        "curve": [[0, before.mean], *([row["step"], row["return_mean"]] for row in evals)],
        "seconds": round(rows[-1]["seconds"], 1),
        "wall": round(time.perf_counter() - begin, 1),
        "settings": settings,
        "machine": machine(),
        "versions": versions("proximo", "torch", "transformers", "numpy"),
    }


def run(out: Path, train: Any, task: str, seed: int) -> None:
    """Train, go on where it was, or nothing where it is done."""
    if (out / "model" / "model.safetensors").exists():
        return
    if (out / "config.json").exists():
        language.resume(out, examples(task, seed), quiet=True)
    else:
        train()


def keep(path: Path, row: dict[str, Any]) -> None:
    """Add or replace one run's result."""
    rows = json.loads(path.read_text()) if path.exists() else []
    place = ("task", "algo", "seed")
    rows = [old for old in rows if any(old[name] != row[name] for name in place)] + [row]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")


def write_table(path: Path) -> None:
    """verifiable.md and verifiable.png, from the results."""
    rows = json.loads(path.read_text())
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        "# Tasks whose answers can be checked",
        "",
        f"{rows[0]['machine']}; {', '.join(f'{k} {v}' for k, v in rows[0]['versions'].items())}. A Llama of three "
        f"layers, 64 wide. {COMMON['steps']} updates of {COMMON['batch']} prompts × 8 completions; reward 1 for the "
        "right answer, else 0. Shares of right ones, drawn at temperature 1, on 200 held-out prompts; "
        f"mean ± standard deviation over {len(seeds)} seeds{' (pilot)' if len(seeds) < 10 else ''}. Gained is after "
        "less before of the same seed. Seconds are those of a machine that did other work as well.",
        "",
        "    python benchmarks/verifiable.py --jobs 2",
        "",
        "| task | algorithm | before | after | gained | KL of a sequence to the imitation, nats | seconds | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        for algo in ALGOS:
            some = [row for row in rows if (row["task"], row["algo"]) == (task, algo)]
            if some:
                before, after, kl, seconds = (
                    np.array([row[name] for row in some if row[name] is not None], float)
                    for name in ("before", "after", "kl_ref", "seconds")
                )
                far = f"{kl.mean():.2f}" if len(kl) and algo not in ("grpo", "rloo") else "–"
                gained = after - before
                means = f"{before.mean():.2f} | {after.mean():.2f} ± {after.std():.2f}"
                numbers = f"{means} | {gained.mean():.2f} ± {gained.std():.2f} | {far} | {seconds.mean():.0f}"
                lines.append(f"| {task} | `{algo}` | {numbers} | {len(some)} |")
    lines += ["", "![Shares of right answers over training](verifiable.png)", ""]
    path.with_suffix(".md").write_text("\n".join(lines))
    draw(rows, path.with_suffix(".png"))


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """A panel a task, a line an algorithm, a band from its worst to its best seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), dpi=120, layout="constrained")
    for panel, task in zip(figure.subplots(1, len(TASKS), sharey=True), TASKS, strict=True):
        for i, algo in enumerate(ALGOS):
            curves = [row["curve"] for row in rows if (row["task"], row["algo"]) == (task, algo)]
            if curves:
                steps, values = [step for step, _ in curves[0]], np.array([[y for _, y in curve] for curve in curves])
                panel.plot(steps, values.mean(0), color=f"C{i}", label=algo)
                panel.fill_between(steps, values.min(0), values.max(0), color=f"C{i}", alpha=0.15, linewidth=0)
        panel.set(title=task, xlabel="updates", ylim=(0, 1))
        panel.grid(alpha=0.3)
    figure.axes[0].set_ylabel("right answers, held-out prompts")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(out)


if __name__ == "__main__":
    main()
