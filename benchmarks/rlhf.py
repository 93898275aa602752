"""The whole RLHF pipeline on real text, and what becomes of a reward that is optimised too long.

    python benchmarks/rlhf.py [--seeds 1] [--threads 1] [--work runs/rlhf] [--results benchmarks/results]
    python benchmarks/rlhf.py --table

A small Llama learns the sentences of Python's own documentation (SFT). A gold reward that is hidden from all learners
prefers some of its completions to others; a reward model learns from a few hundred such pairs, and PPO, best-of-n and
DPO learn from it or from them. Gold then says what they are worth. A step that is done is not done again, unless its
settings changed: results are kept in rlhf.json as they come. `--table` writes rlhf.md and the pictures from them.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from machine import machine, versions
from rlhf_gold import base, cut, digest, gold, sentences
from rlhf_judge import lines, right, sampled, scorer

from proximo import language
from proximo.run.files import replace_durably
from proximo.run.folder import read_rows

Row = dict[str, Any]
PLACE = ("step", "seed")
LENGTH, TESTED = 32, 128  # tokens of a completion; sentences that nobody learns from
SHARP = 2.0  # how sure the one who prefers is: P(a over b) = σ(SHARP · difference of gold, deviations of SFT's)
JUDGED = 256  # completions that a policy is judged by
TRAINING: dict[str, Any] = dict(max_tokens=LENGTH, too_long="drop", eval_every=0, checkpoint_every=50, device="cpu")
SFT: dict[str, Any] = dict(steps=400, batch=32, lr=3e-3, whole_text=True)
PAIRS, HELD = 1500, 400  # that the reward model and DPO learn from; that the reward model is judged by
REWARD: dict[str, Any] = dict(steps=150, batch=16, lr=3e-4)
LOOK: dict[str, Any] = dict(eval_every=8, eval_prompts=200, held_out=0.2)
PPO: dict[str, Any] = dict(batch=48, lr=2e-4, epochs=2, minibatches=2, anneal_lr=False) | LOOK
RUNS: dict[str, dict[str, Any]] = {
    "ppo loose": PPO | dict(steps=96, beta=0.01),
    "ppo led": PPO | dict(steps=64, beta=0.2, target_kl=4.0, kl_horizon=100, alarm_kl=8.0),
    "dpo 0.3": dict(steps=94, batch=16, lr=3e-4, beta=0.3),
    "dpo 0.1": dict(steps=94, batch=16, lr=3e-4, beta=0.1),
    "dpo 0.03": dict(steps=94, batch=16, lr=3e-4, beta=0.03),
}
BEST, ASKED = 64, 32  # completions of each prompt that best-of-n chooses from; prompts
STEPS = ("sft", "pairs", "reward", "best of n", *RUNS)


class Context(NamedTuple):
    """What all steps of a seed share."""

    seed: int
    threads: int
    work: Path
    rows: list[Row]

    @property
    def folder(self) -> Path:
        return self.work / f"seed-{self.seed}"

    def of(self, step: str) -> Row:
        return next(row for row in self.rows if row["step"] == step and row["seed"] == self.seed)

    def told(self, step: str) -> Path:
        return self.folder / step.replace(" ", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/rlhf"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    path = args.results / "rlhf.json"
    if not args.table:
        torch.set_num_threads(args.threads)
        for seed in range(args.seeds):
            for step in STEPS:
                take(step, Context(seed, args.threads, args.work, read(path)), path)
    from rlhf_table import draw, table

    rows = read(path)
    path.with_suffix(".md").write_text(table(rows))
    draw(rows, args.results)


def take(step: str, c: Context, path: Path) -> None:
    """One step, unless it is done with the settings as they are now, and those before it with theirs."""
    settings = json.loads(json.dumps({"text": digest(), **asked(step)}))
    if any((row["step"], row["seed"], row["settings"]) == (step, c.seed, settings) for row in c.rows):
        return
    began = c.folder / "began" / f"{step}.json"
    if not began.exists() or json.loads(began.read_text()) != settings:
        shutil.rmtree(c.told(step), ignore_errors=True)
    began.parent.mkdir(parents=True, exist_ok=True)
    began.write_text(json.dumps(settings))
    begin = time.perf_counter()
    found = work_of(step)(step, c)
    row: Row = {"step": step, "seed": c.seed, **found, "seconds": round(time.perf_counter() - begin, 1)}
    row |= {"settings": settings, "command": " ".join(["python benchmarks/rlhf.py", *sys.argv[1:]])}
    row |= {"machine": machine(), "versions": versions("proximo", "torch", "transformers", "tokenizers", "numpy")}
    rows = [old for old in c.rows if any(old[name] != row[name] for name in PLACE)] + [row]
    rows.sort(key=lambda old: (old["seed"], STEPS.index(old["step"])))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_durably(path, ("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n").encode())
    shown = {name: value for name, value in found.items() if isinstance(value, float | int)}
    told = ", ".join(f"{name} {value:.3g}" for name, value in shown.items())
    print(f"{time.strftime('%H:%M:%S')} seed {c.seed}, {step}: {told}, {row['seconds']:.0f} s", flush=True)


def asked(step: str) -> Row:
    """All settings that a step's result follows from."""
    found: Row = {"sft": SFT}
    if step != "sft":
        found |= {"pairs": [PAIRS, HELD, SHARP]}
    if step not in ("sft", "pairs"):
        found |= {"reward": REWARD, "judged": JUDGED}
    return found | ({"best": [BEST, ASKED]} if step == "best of n" else {"run": RUNS.get(step)})


def work_of(step: str) -> Callable[[str, Context], Row]:
    return {"sft": sft, "pairs": pairs, "reward": reward, "best of n": best_of_n}.get(step, learned)


def learning() -> list[dict[str, str]]:
    """The sentences that are learned from, cut; those after them are for judging alone."""
    return [cut(each) for each in shuffled()[:-TESTED]]


def testing() -> list[str]:
    return [cut(each)["prompt"] for each in shuffled()[-TESTED:]]


def shuffled() -> list[str]:
    found = sentences()
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def sft(step: str, c: Context) -> Row:
    """The model that all else begins with."""
    parameters = base(c.folder / "base", c.seed)
    run = trained(c, step, c.folder / "base", learning(), "sft", max_tokens=64, **SFT)
    (row,) = read_rows(run / "eval.jsonl")
    return {"parameters": parameters, "sentences": len(learning()), "loss": row["loss"]}


def trained(c: Context, step: str, model: Path, data: Any, algo: str, **settings: Any) -> Path:
    """The folder of a run, in which it came to its end; one that was stopped goes on."""
    told: dict[str, Any] = {**TRAINING, "seed": c.seed, "threads": c.threads, **settings}
    out = c.told(step)
    rows = read_rows(out / "eval.jsonl")
    if rows and rows[-1]["step"] >= told["steps"]:
        return out
    if (out / "config.json").exists():
        run = language.resume(out, data, gold=settings.get("gold"), steps=told["steps"], quiet=True)
    else:
        run = language.train(model, data, algo, out=out, quiet=True, **told)
    if not run.finished:
        sys.exit(f"{step} was interrupted: the same command goes on with it")
    return out


def pairs(step: str, c: Context) -> Row:
    """Preferences between two of SFT's own completions of a prompt, drawn from gold by Bradley and Terry's model."""
    every = [each["prompt"] for each in learning()]
    some, others = every[len(every) // 4 :], every[: len(every) // 4]
    prompts = [*islice(cycle(some), PAIRS), *islice(cycle(others), HELD)]  # no prompt is in both
    both = sampled(c.told("sft"), prompts, 2, LENGTH, 1000 + c.seed)
    scores, random = both.gold.reshape(-1, 2), np.random.default_rng(c.seed)
    mean, deviation = scores.mean(), scores.std()
    difference = SHARP * (scores[:, 0] - scores[:, 1]) / deviation
    first = random.random(len(prompts)) < 1 / (1 + np.exp(-difference))
    learned, held = list[dict[str, str]](), list[dict[str, str]]()
    for i, (prompt, better) in enumerate(zip(prompts, first, strict=True)):
        one, other = both.texts[2 * i : 2 * i + 2]
        pair = (one, other) if better else (other, one)
        if one.strip() and other.strip() and one != other:
            (learned if i < PAIRS else held).append({"prompt": prompt, "chosen": pair[0], "rejected": pair[1]})
    c.told(step).mkdir(parents=True, exist_ok=True)
    for name, some in (("learned", learned), ("held", held)):
        (c.told(step) / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in some))
    real = [cut(each)["completion"] for each in shuffled()[-TESTED:]]
    return {
        "pairs": len(learned), "held": len(held), "ceiling": right(held, gold), "mean": float(mean),
        "deviation": float(deviation), "sentences": float(np.mean(gold(testing(), real))),
        "ended": float(both.ended.mean()), "length": float(both.length.mean()),
    }  # fmt: skip


def reward(step: str, c: Context) -> Row:
    """The reward model, and how it tells pairs apart that it did not learn from."""
    run = trained(c, step, c.told("sft"), c.told("pairs") / "learned.jsonl", "reward", **REWARD)
    scored = scorer(run)
    learned_from, held = (lines(c.told("pairs") / f"{name}.jsonl") for name in ("learned", "held"))
    seen = sampled(c.told("sft"), testing(), JUDGED // TESTED, LENGTH, 2000 + c.seed, run)
    return {
        "accuracy": right(held, scored), "ceiling": right(held, gold), "accuracy_learned": right(learned_from, scored),
        "mean": float(seen.proxy.mean()), "deviation": float(seen.proxy.std()),
        "correlation": float(np.corrcoef(seen.proxy, seen.gold)[0, 1]),
    }  # fmt: skip


def units(c: Context, gold: np.ndarray, proxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gold and proxy in deviations of SFT's completions from their mean."""
    real, learned = c.of("pairs"), c.of("reward")
    return (gold - real["mean"]) / real["deviation"], (proxy - learned["mean"]) / learned["deviation"]


def best_of_n(step: str, c: Context) -> Row:
    """Gold and proxy of the best of n, without bias for all n at once: of m completions in the order of their proxy
    the i-th is the best of n that are drawn from them with probability C(i − 1, n − 1) / C(m, n)."""
    found = sampled(c.told("sft"), testing()[:ASKED], BEST, LENGTH, 3000 + c.seed, c.told("reward"))
    real, learned = (x.reshape(ASKED, BEST) for x in units(c, found.gold, found.proxy))
    order = learned.argsort(1)
    real, learned = (np.take_along_axis(x, order, 1) for x in (real, learned))
    curve = []
    for n in (2**i for i in range(int(math.log2(BEST)) + 1)):
        weight = np.array([math.comb(i, n - 1) / math.comb(BEST, n) for i in range(BEST)])
        means = real @ weight, learned @ weight
        errors = [float(x.std(ddof=1) / math.sqrt(ASKED)) for x in means]
        row = {"n": n, "kl": math.log(n) - (n - 1) / n, "gold": float(means[0].mean()), "gold_error": errors[0]}
        curve.append(row | {"proxy": float(means[1].mean()), "proxy_error": errors[1]})
    return {"curve": curve}


def learned(step: str, c: Context) -> Row:
    """A policy by PPO or DPO, judged on sentences that nobody learned from; of PPO its way there, and its alarms."""
    if step.startswith("dpo"):
        trained(c, step, c.told("sft"), c.told("pairs") / "learned.jsonl", "dpo", **RUNS[step])
        return judged_by(step, c)
    prompts = [{"prompt": each["prompt"]} for each in learning()]
    proxy = str(c.told("reward"))
    run = trained(c, step, c.told("sft"), prompts, "ppo", reward_model=proxy, gold=gold, **RUNS[step])
    rows = read_rows(run / "eval.jsonl")
    real, judged = units(c, *(np.array([row[name] for row in rows]) for name in ("gold", "return_mean")))
    curve = [{"step": 0, "kl": 0.0, "gold": 0.0, "proxy": 0.0}]  # SFT itself
    for row, g, p in zip(rows, real, judged, strict=True):
        told = {name: row[name] for name in ("step", "length_mean", "ended")}
        curve.append({**told, "kl": row["kl_ref"], "gold": float(g), "proxy": float(p)})
    return {**judged_by(step, c), "curve": curve, "alarms": read_rows(run / "alarms.jsonl")}


def judged_by(step: str, c: Context) -> Row:
    """Gold, proxy and KL of a policy, each with its standard error, and three of its completions."""
    found = sampled(c.told(step), testing(), JUDGED // TESTED, LENGTH, 4000 + c.seed, c.told("reward"))
    row: Row = {"length": float(found.length.mean()), "ended": float(found.ended.mean())}
    for name, x in zip(("gold", "proxy", "kl"), (*units(c, found.gold, found.proxy), found.kl), strict=True):
        row |= {name: float(x.mean()), f"{name}_error": float(x.std(ddof=1) / math.sqrt(len(x)))}
    return row | {"samples": [a + "…" + b for a, b in zip(found.prompts[:8:2], found.texts[:8:2], strict=True)]}


def read(path: Path) -> list[Row]:
    return json.loads(path.read_text()) if path.exists() else []


if __name__ == "__main__":
    main()
