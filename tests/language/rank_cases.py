"""What several processes do together in test_ranks.py: small trainings of which each rank keeps what it ended with."""

from __future__ import annotations

import copy
import os
import signal
import sys
from collections.abc import Callable, Collection
from itertools import count, product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor

from proximo import cli, language, ranks
from proximo.algorithms.language import language_algorithm
from proximo.models.language import policy as policy_module
from proximo.models.language.critic import Critic
from proximo.models.language.hub import trunk_of
from proximo.models.language.policy import LanguagePolicy
from proximo.models.language.reward import RewardModel
from proximo.run.seeding import UPDATES, derived, seed_all
from proximo.sources.generation import decode
from proximo.sources.sampling import Sampling
from proximo.sources.text.examples import Example, ids
from proximo.sources.text.loader import Loader
from proximo.sources.texts import TextSource, as_pairs, as_texts
from proximo.sources.tokens import TokenSource
from tests.language import tiny

EOS, PAD, UPDATES_MADE = 2, 0, 3
Case = tuple[str, str, int, int, dict[str, Any]]  # name, algorithm, examples of an update, group, settings
CASES: list[Case] = [
    ("sft", "sft", 8, 1, {}),
    ("sft, odd, in pieces", "sft", 7, 1, {"micro_batch": 2}),
    ("sft, packed", "sft", 9, 1, {"minibatches": 1}),
    ("sft, fewer texts than ranks", "sft", 3, 1, {}),
    ("reward", "reward", 5, 1, {}),
    ("dpo", "dpo", 6, 1, {"minibatches": 2, "epochs": 2}),
    ("dpo, odd, in pieces", "dpo", 5, 1, {"micro_batch": 1}),
    ("grpo", "grpo", 6, 4, {"minibatches": 2, "epochs": 2}),
    ("grpo, odd, in pieces", "grpo", 3, 3, {"minibatches": 3, "micro_batch": 2, "epochs": 2}),
    ("dapo", "dapo", 4, 4, {}),
    ("rloo", "rloo", 4, 4, {"epochs": 2}),
    ("ppo", "ppo", 7, 1, {"epochs": 2, "target_kl": 0.01, "kl_horizon": 20, "whiten_rewards": True}),
    ("ppo, in pieces", "ppo", 10, 1, {"epochs": 2, "minibatches": 2, "micro_batch": 2, "entropy_coef": 0.01}),
    ("asymmetric_ppo", "asymmetric_ppo", 3, 3, {"epochs": 2}),
]


def examples(count: int = 23) -> list[Example]:
    """Prompts of one to six tokens, each with two answers of one to five and EOS."""
    made, random = list[Example](), torch.Generator().manual_seed(5)

    def some(most: int) -> list[int]:
        size = int(torch.randint(1, most + 1, (), generator=random))
        return torch.randint(4, 40, (size,), generator=random).tolist()

    for _ in range(count):
        prompt = some(6)
        made.append(Example(ids(*prompt), (ids(*some(5), EOS), ids(*some(5), EOS)), " ".join(map(str, prompt)), {}))
    return made


def few(completion_ids: list[list[int]], **rest: Any) -> list[float]:
    """A reward: small tokens are good ones."""
    return [sum(token < 20 for token in one) / len(one) - 0.01 * one[0] for one in completion_ids]


def policy_for(algo: str, dtype: torch.dtype, arrange: Callable[[Any], Any], make: Callable[[], Any]) -> Any:
    """A policy whose reference is a little off, so that KL is not zero."""
    model, reference = make().to(dtype), make().to(dtype).requires_grad_(False)
    with torch.no_grad():
        torch.manual_seed(3)
        for parameter in reference.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    if algo == "reward":
        torch.manual_seed(4)
        return arrange(RewardModel(model).to(dtype))
    critic = None
    if algo == "ppo":
        critic = Critic(16).to(dtype)
    if algo == "asymmetric_ppo":
        torch.manual_seed(4)
        critic = Critic(16, [copy.deepcopy(trunk_of(model)) for _ in range(2)], 0.02).to(dtype)
    return arrange(LanguagePolicy(model, reference, critic))


def source_for(name: str, algo: Any, count: int, group: int, needs: frozenset[str], at_once: int | None = None) -> Any:
    loader = Loader(examples(), 1)
    if algo.learns_from == "completions":
        sampling = Sampling(6, eos=(EOS,), pad=PAD)
        return TokenSource(loader, decode, sampling, few, str, count, group, at_once)
    rows = as_pairs(PAD) if algo.learns_from == "pairs" else as_texts(PAD, 24 if "packed" in name else None)
    return TextSource(loader, rows, count, "ref_logp" in needs, at_once)


def trained(
    case: Case, dtype: torch.dtype, arrange: Callable[[Any], Any] = lambda model: model, make: Any = tiny.llama
) -> dict[str, Tensor]:
    """Weights after a few updates, and what each of them reported."""
    name, algo, count, group, settings = case
    kind = language_algorithm(algo)
    config = kind.Config(lr=1e-3, **settings)
    policy = policy_for(algo, dtype, arrange, make)
    algorithm, source = kind(policy, config), source_for(name, kind, count, group, config.needs)
    found: dict[str, Tensor] = {}
    for update in range(UPDATES_MADE):
        seed_all(derived(0, UPDATES, update))
        batch = source.collect(policy)
        found[f"action {update}"] = batch.action.clone()
        for key, value in algorithm.step(batch, update / UPDATES_MADE).items():
            found[f"{key} {update}"] = torch.as_tensor(value, dtype=torch.float64).clone()
        for key, value in source.episodes.metrics().items():
            found[f"{key} {update}"] = torch.tensor(float(value or 0))
    return found | {key: ranks.whole(x).detach().clone() for key, x in policy.state_dict().items()}


def in_shards(policy: Any) -> Any:
    if ranks.size() > 1:
        policy.shard()
    return policy


def replicated(folder: Path, names: Collection[str] = ()) -> None:
    """The cases of these names, or all, in both precisions; each rank's results in a file of its own."""
    with ranks.joined("cpu"):
        for dtype, case in product((torch.float64, torch.float32), CASES):
            if not names or case[0] in names:
                keep(trained(case, dtype), folder, case, dtype)


def sharded(folder: Path, names: Collection[str] = ()) -> None:
    """The same with FSDP2, and with the model's own forward pass, which is what shards go through."""
    with ranks.joined("cpu"), patch.object(policy_module, "knows", lambda model: False):
        for dtype, case in product((torch.float64, torch.float32), CASES):
            if not names or case[0] in names:
                make = tiny.gpt2 if dtype == torch.float64 else tiny.llama  # Llama's norms are float32 in any case
                keep(trained(case, dtype, in_shards, make), folder, case, dtype)


def keep(found: dict[str, Tensor], folder: Path, case: Case, dtype: torch.dtype) -> None:
    save_file(found, folder / f"{case[0]}-{str(dtype)[6:]}-{ranks.rank()}")


RUN: dict[str, Any] = dict(
    algo="grpo", steps=5, batch=3, group=3, max_tokens=5, lr=1e-3, checkpoint_every=2, eval_every=2, eval_prompts=3,
    device="cpu", threads=1, stop_drift=100.0, quiet=True,
)  # fmt: skip
PROMPTS = [{"prompt": f"{a} + {b} ="} for a in "abcdef" for b in range(5)]


def folder_with_model(path: Path) -> Path:
    tiny.llama().save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def run(folder: Path, happens: Callable[[int], None] = lambda call: None, again: bool = False, **more: Any) -> None:
    """The command, with a run from Python in its place; `happens` as the reward function is called for the n-th time.

    Its folder is the folder's parent, where the model lies too.
    """
    calls = count(1)

    def reward(completion_ids: list[list[int]], **rest: Any) -> list[float]:
        happens(next(calls))
        return few(completion_ids)

    def execute(argv: list[str]) -> int:
        if again:
            done = language.resume(folder.parent / "run", PROMPTS, reward=reward, quiet=True)
        else:
            out = folder.parent / "run"
            done = language.train(folder.parent / "model", PROMPTS, reward=reward, out=out, **{**RUN, **more})
        return cli.finish(done)

    with patch.object(cli, "execute", execute), patch.object(sys, "argv", ["proximo", "train"]):
        cli.main()


def trouble(call: int, when: int, what: Callable[[], object]) -> None:
    """At the second process alone."""
    if call == when and ranks.dist.get_rank() == 1:
        what()


def fails(folder: Path) -> None:
    run(folder, lambda call: trouble(call, 4, lambda: 1 / 0))


def dies(folder: Path) -> None:
    run(folder, lambda call: trouble(call, 4, lambda: os.kill(os.getpid(), signal.SIGKILL)))


def is_told_to_stop(folder: Path) -> None:
    run(folder, lambda call: trouble(call, 4, lambda: os.kill(os.getpid(), signal.SIGTERM)))


def is_resumed(folder: Path) -> None:
    run(folder, again=True)


def runs_in_shards(folder: Path) -> None:
    run(folder, shard=True)


def finds_a_folder_in_use(folder: Path) -> None:
    run(folder)
