"""The parts of a run of a language model, put together from its plan."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch

from proximo import ranks
from proximo.algorithms.language import language_algorithm
from proximo.errors import CheckpointError, ConfigError
from proximo.models.language.build import CriticKind, language_policy
from proximo.models.language.build import reward_model as fresh_reward_model
from proximo.models.language.hub import digest_of, folder_of, must_be_model
from proximo.models.language.reward import RewardModel
from proximo.rewards import Reward, Weighted, missing_eos, must_have_columns, name_of, named
from proximo.run import checkpoint, folder
from proximo.run.language.drift import ledger_of
from proximo.run.language.judge import completing, preferring, reading
from proximo.run.language.material import Material, Say, Words, material, words_of
from proximo.run.language.plan import SAMPLED, LanguagePlan, LanguageRun
from proximo.run.language.speaker import ModelReward, Speaker
from proximo.run.language.watch import Watch
from proximo.run.plan import Judge
from proximo.run.run import Run, load_policy
from proximo.sources.generation import Generator, generator_named
from proximo.sources.sampling import Sampling
from proximo.sources.text.loader import Loader
from proximo.sources.texts import TextSource, as_pairs, as_texts
from proximo.sources.tokens import ALWAYS, TokenSource

GROUP = 8  # completions of a prompt that are compared


Device = Literal["auto", "cpu", "cuda"]


class Given(NamedTuple):
    """What of a run comes from Python: functions of the user's own."""

    reward: Reward | None = None
    gold: Reward | None = None
    generator: Generator | None = None


LanguageTrain = Run[LanguagePlan, Speaker, TokenSource | TextSource]


def build(plan: LanguagePlan, data: Any, given: Given, say: Say, all_held: bool = False) -> LanguageTrain:
    """All parts; ConfigError for what cannot work, CheckpointError where model or data are not the plan's any more."""
    path, kind = folder_of(plan.model), language_algorithm(plan.algo).learns_from
    if plan.run.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch finds no GPU: use --device cpu")
    must_be_model(path)
    must_apply(plan, kind)
    words = words_of(path, say)
    policy = policy_of(plan, path)
    if plan.run.shard and ranks.size() > 1:
        policy.shard()
    context = getattr(policy.model.config, "max_position_embeddings", None)
    plan = sized(plan, context)
    vocabulary = policy.model.get_input_embeddings().weight.shape[0]
    found = material(data, kind, words, plan.run, context, vocabulary, say, all_held)
    plan = identified(plan, path, found)
    algorithm = language_algorithm(plan.algo)(policy, plan.algorithm)
    generator = given.generator or generator_named(plan.run.generator, plan.run.precision)
    speaker = Speaker(policy, words, generator, plan.run.max_tokens, found.held[: plan.run.eval_prompts])
    source, judge = source_of(plan, kind, policy, speaker, found, given)
    return Run(Path(), plan, speaker, algorithm, source, judge, ledger_of(plan, policy), Watch(plan.run))


def resolved(plan: LanguagePlan) -> LanguagePlan:
    """With what depends on the machine and the algorithm decided."""
    run = plan.run
    if run.shard and ranks.launched() < 2:
        raise ConfigError("shard is for several processes: torchrun --nproc-per-node K -m proximo language …")
    compares = "group" in plan.algorithm.needs
    group = run.group or (GROUP if compares else 1)
    if compares and group == 1:
        raise ConfigError(f"group is 1, but {plan.algo} compares the completions of a prompt: give 2 or more")
    run = replace(run, device=here(run.device), group=group, threads=run.threads or ranks.cores())
    run = replace(run, critic_model=found_from_anywhere(run.critic_model))
    run = replace(run, reward_model=found_from_anywhere(run.reward_model))
    model, data = found_from_anywhere(plan.model), found_from_anywhere(plan.data)
    return replace(plan, model=model, data=data, run=run)


def here(device: Device) -> Device:
    """The device that is meant on this machine."""
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def sized(plan: LanguagePlan, context: int | None) -> LanguagePlan:
    """With the length of sampled completions decided: as is asked, else what a model's context has room for."""
    run, algorithm = plan.run, plan.algorithm
    if run.max_tokens is None and plan.samples:
        run = replace(run, max_tokens=SAMPLED if context is None else min(SAMPLED, max(context // 2, 1)))
    if getattr(algorithm, "max_length", 0) is None:
        algorithm = replace(algorithm, max_length=run.max_tokens)
    return replace(plan, run=run, algorithm=algorithm)


S = TypeVar("S", str, str | None)


def found_from_anywhere(name: S) -> S:
    """What is here by its whole path, so that a run goes on whatever folder it is resumed from; other names as such."""
    return name if name is None or not os.path.exists(name) else os.path.abspath(name)


def identified(plan: LanguagePlan, path: Path, found: Material) -> LanguagePlan:
    """The plan with digests of model and data; CheckpointError where it has others already."""
    must_be_same(plan, path)
    weights, examples, judge = digest_of(path), found.digest, digest_of_judge(plan.run.reward_model)
    if plan.examples not in ("", examples):
        raise CheckpointError(f"the data {plan.data} is not what this run began with: its examples differ")
    if plan.judge not in ("", judge):
        raise CheckpointError(f"{plan.run.reward_model} is not the reward model that this run began with")
    return replace(plan, weights=weights, examples=examples, judge=judge, conversation=found.conversation)


def digest_of_judge(path: str | None) -> str:
    """SHA-256 over the weights of a reward model's newest good checkpoint; nothing for none."""
    if path is None:
        return ""
    reward_plan(Path(path))
    return digest_of(checkpoint.latest(Path(path), lambda text: None).path)


def must_apply(plan: LanguagePlan, kind: str) -> None:
    """ConfigError for settings that the algorithm has no use for, or not in this combination."""
    run, needs, name = plan.run, plan.algorithm.needs, plan.algo
    judged = {"value", "values"} & needs
    if kind != "completions" and (run.rewards or run.gold or run.reward_model or run.missing_eos is not None):
        raise ConfigError(f"{name} learns from a data set and takes no reward: leave it out")
    if kind != "completions" and run.measures_drift:
        raise ConfigError(f"max_kl and stop_drift are for what a policy sampled, and {name} learns from {kind}")
    if run.max_kl is not None and run.precision != "float32":
        raise ConfigError("max_kl measures more precisely than bfloat16")
    if run.resample and (run.group or 1) == 1:
        raise ConfigError("resample exchanges groups whose completions scored alike: it needs a group of 2 or more")
    if run.pack and plan.algorithm.minibatches > 1:
        raise ConfigError("pack fills as many rows as the texts need: it takes one minibatch")
    if kind != "texts" and (run.pack or run.whole_text):
        raise ConfigError(f"{'pack' if run.pack else 'whole_text'} is for texts (sft), and {name} learns from {kind}")
    if plan.algorithm.minibatches > (lanes := run.batch * (run.group or 1)):
        raise ConfigError(f"minibatches is {plan.algorithm.minibatches}, but an update has only {lanes} sequences")
    if run.critic != "auto" and bool(judged) != (run.critic != "none"):
        raise ConfigError(f"critic is {run.critic}, but {name} {'needs one' if judged else 'has none'}: leave it out")
    if "values" in needs and run.critic not in ("auto", "mini"):
        raise ConfigError(f"critic is {run.critic}, but {name} compares two: mini")


def must_be_same(plan: LanguagePlan, path: Path) -> None:
    """CheckpointError where the model that a run began with has other weights now."""
    if plan.weights not in ("", digest_of(path)):
        raise CheckpointError(f"the model in {path} is not the one that this run began with: its weights differ")


def policy_of(plan: LanguagePlan, path: Path) -> Any:
    """The model that learns, with fresh heads from torch's global generator."""
    run, needs = plan.run, plan.algorithm.needs
    if plan.algo == "reward":
        return fresh_reward_model(path, run.lora, run.precision, run.checkpointing, run.device)
    kind: CriticKind = "mini" if "values" in needs else "shared" if "value" in needs else "none"
    if run.critic != "auto":
        kind = run.critic
    reference = "ref_logp" in needs or run.measures_drift
    return language_policy(
        path, kind, run.critic_model, reference, run.lora, run.temperature, run.precision,
        run.checkpointing, run.device,
    )  # fmt: skip


def source_of(
    plan: LanguagePlan, kind: str, policy: Any, speaker: Speaker, found: Material, given: Given
) -> tuple[TokenSource | TextSource, Judge]:
    """Where experience comes from, and who evaluates."""
    run, words, held = plan.run, speaker.words, speaker.held
    loader = Loader(found.learned, run.seed)
    if kind == "completions":
        sampling = Sampling(run.max_tokens or SAMPLED, run.temperature, eos=(words.eos,), pad=words.pad)
        worth, gold = reward_of(run, words, given.reward, found.columns), gold_of(run, given.gold, found.columns)
        numbers = run.batch, run.group or 1, run.at_once, "sampler_logp" in plan.algorithm.needs, run.resample
        source = TokenSource(loader, speaker.generator, sampling, worth, words.decode, *numbers)
        return source, completing(source, policy, held, run.seed, gold)
    if given != Given():
        raise ConfigError(f"{plan.algo} learns from a data set and takes no reward: leave it out")
    rows = as_pairs(words.pad) if kind == "pairs" else as_texts(words.pad, run.pack)
    source = TextSource(loader, rows, run.batch, "ref_logp" in plan.algorithm.needs, run.at_once)
    if kind == "texts":
        alone = TextSource(loader, as_texts(words.pad), run.batch, at_once=run.at_once)
        return source, reading(alone, policy, held)
    return source, preferring(source, policy, held, getattr(plan.algorithm, "beta", None))


def reward_of(run: LanguageRun, words: Words, own: Reward | None, columns: Collection[str]) -> Reward:
    """What completions are worth, data with these columns: built-in rewards, the model's and the user's, summed."""
    parts = weighed(run.rewards)
    if run.reward_model is not None:
        parts["model"] = ModelReward(*reward_model(Path(run.reward_model), run.device), words.tokenizer), 1.0
    if own is not None:
        parts[name_of(own)] = own, 1.0
    if not parts:
        raise ConfigError("completions need a reward: --rewards exact_match, --reward-model DIR, or reward=… in Python")
    for name, (part, _) in parts.items():
        must_have_columns(part, {*columns, *ALWAYS}, name)
    worth = Weighted(parts)
    return worth if run.missing_eos is None else missing_eos(worth, run.missing_eos)


def gold_of(run: LanguageRun, own: Reward | None, columns: Collection[str]) -> Reward | None:
    """What evaluations measure beside, if anything."""
    parts = weighed(run.gold) | ({} if own is None else {name_of(own): (own, 1.0)})
    for name, (part, _) in parts.items():
        must_have_columns(part, {*columns, *ALWAYS}, name)
    return Weighted(parts) if parts else None


def weighed(asked: Sequence[str]) -> dict[str, tuple[Reward, float]]:
    """Built-in rewards and their weights, from name or name=weight."""
    parts: dict[str, tuple[Reward, float]] = {}
    for one in asked:
        name, equals, weight = one.partition("=")
        reward = named(name)
        try:
            parts[name] = reward, float(weight) if equals else 1.0
        except ValueError:
            raise ConfigError(f"reward {one!r}: write name or name=weight, a number") from None
    return parts


def reward_plan(path: Path) -> LanguagePlan:
    """The plan of the run that trained a reward model."""
    plan = folder.read_plan(path)
    if not isinstance(plan, LanguagePlan) or plan.algo != "reward":
        raise ConfigError(f"reward_model {path} is no run of `proximo language reward`")
    return plan


def reward_model(path: Path, device: str = "cpu") -> tuple[RewardModel, Words]:
    """The reward model of a run's folder, and its words."""
    plan = reward_plan(path)
    base = folder_of(plan.model)
    must_be_same(plan, base)
    model = policy_of(replace(plan, run=replace(plan.run, device=device)), base)
    load_policy(model, checkpoint.latest(path, lambda text: None))
    return model, words_of(base)
