"""What a run of a language model is: everything that was asked for or chosen, as config.json holds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from proximo.algorithms.language import LANGUAGE, language_algorithm
from proximo.batch import Batch
from proximo.checks import check
from proximo.errors import ConfigError, UnknownName, unknown
from proximo.models.language.build import CriticKind
from proximo.run.config import MOST_THREADS
from proximo.run.settings import built

PYTHON = ("data", "reward", "gold", "generator")  # what of a run may come from Python
RETURNS = {
    "completions": "reward of a completion",
    "texts": "log-probability of a held-out token, nats",
    "pairs": "share of held-out pairs told apart",
}
READ = dict(algo=str, model=str, data=str, weights=str, examples=str, judge=str, conversation=bool)  # from config.json
SAMPLED = 128  # tokens of a completion that is sampled, where nothing else is asked for
MOST_TOGETHER = 2**26  # tokens of a collection's rows, however many are asked for
MOST_RANK = 4_096  # of adapters; more than the width of most models
ELSEWHERE = {
    "learning_rate": "lr",
    "max_steps": "steps",
    "num_generations": "group",
    "per_device_train_batch_size": "batch",
    "max_completion_length": "max_tokens",
    "max_prompt_length": "max_prompt",
    "gradient_checkpointing": "checkpointing",
    "lora_r": "lora",
    "num_train_epochs": "steps, which are updates",
    "reward_funcs": "reward (a function) or rewards (names)",
}


@dataclass(frozen=True)
class LanguageRun:
    """The numbers of a run that are not the algorithm's."""

    steps: int = 200
    """Updates: collections of completions, or draws from the data set, each learned from as the algorithm says."""
    batch: int = 32
    """Examples of an update: prompts, pairs or texts."""
    group: int | None = None
    """Completions of each prompt; None: 8 where the algorithm compares them with each other (GRPO, RLOO, …), else 1."""
    resample: int = 0
    """How often prompts whose completions all scored alike, and so teach nothing, are exchanged for others (DAPO)."""
    max_prompt: int | None = None
    """Longest prompt, tokens; None takes what the model's context leaves."""
    max_tokens: int | None = None
    """Longest completion, tokens; None: 128, or half the context, where they are sampled, else what it leaves."""
    too_long: Literal["error", "drop", "truncate"] = "error"
    """What becomes of a longer prompt; truncate cuts it from the left. Of texts longer than pack, drop drops them."""
    temperature: float = 1.0
    """Divides the logits of policy and reference, while sampling and while learning."""
    generator: Literal["static", "transformers", "continuous"] = "static"
    """Who samples: our decoder with a static cache, transformers' generate, or its continuous batching."""
    rewards: tuple[str, ...] = ()
    """What completions are worth: built-in rewards by name, as name or name=weight; summed."""
    reward_model: str | None = None
    """A trained reward model: the folder of a run of `proximo language reward`; added to the others."""
    missing_eos: float | None = None
    """The score of a completion that did not come to its end, in place of any other."""
    critic: CriticKind | Literal["auto"] = "auto"
    """Who values states: a head on the model's own layers, a model of its own, two small ones; auto: as is needed."""
    critic_model: str | None = None
    """What a critic of its own begins with; by default the model."""
    lora: int | None = None
    """Rank of low-rank adapters, which alone are trained then; the reference is the model without them."""
    whole_text: bool = False
    """Learn from prompts too (SFT)."""
    pack: int | None = None
    """Put several texts into rows of so many tokens (SFT); None pads each to the longest."""
    stream: bool = False
    """Read and tokenise rows as they are drawn, for data larger than memory; what is wrong with one is told then."""
    seed: int = 0
    """Every random number follows from it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model lives."""
    threads: int = 0
    """Threads torch computes with; 0 takes one for each core, which is then what resuming needs."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What products are taken in; parameters, logits and losses stay float32."""
    checkpointing: bool = False
    """Compute layers again in the backward pass, to save memory."""
    shard: bool = False
    """Leave each of several processes its part of all parameters, gradients and moments alone (FSDP2)."""
    at_once: int | None = None
    """Rows that are evaluated together where nothing is learned (reference, values); None: as many as is best."""
    checkpoint_every: int = 50
    """Updates between checkpoints."""
    eval_every: int = 50
    """Updates between evaluations; 0 evaluates only at the end."""
    eval_prompts: int = 64
    """Examples of an evaluation."""
    held_out: float = 0.05
    """Share of the data set that is never learned from, and evaluated on."""
    gold: tuple[str, ...] = ()
    """Rewards that evaluations measure and nothing learns, by name: what the others stand for."""
    alarm_kl: float | None = 20.0
    """Tell where a sequence's KL from the reference, nats, exceeds this."""
    alarm_length: float | None = 3.0
    """Tell where completions are so many times as long, or short, as at first."""
    alarm_repetition: float | None = 0.3
    """Tell where this share of tokens repeats what stands before them (and twice what it was at first)."""
    alarm_entropy: float | None = 0.1
    """Tell where the entropy falls below this share of what it was at first."""
    alarm_gold: float | None = 0.2
    """Tell where the gold reward has lost this share of what it had gained, while the reward rose."""
    max_kl: float | None = None
    """Most that an update may change the policy: KL(old ‖ new) a token, nats; a longer one is cut or undone."""
    stop_drift: float | None = None
    """End the run where the KL of a sequence from the reference, nats, exceeds this."""

    def __post_init__(self) -> None:
        check(self, at_least_one=("steps", "batch", "checkpoint_every", "eval_prompts"))
        check(self, not_negative=("seed", "eval_every", "threads", "resample"), positive=("temperature",))
        for name in ("group", "max_prompt", "max_tokens", "lora", "pack", "at_once"):
            if getattr(self, name) is not None:
                check(self, at_least_one=(name,))
        alarms = ("alarm_kl", "alarm_length", "alarm_repetition", "alarm_entropy", "alarm_gold")
        given = (name for name in ("max_kl", "stop_drift", *alarms) if getattr(self, name) is not None)
        check(self, positive=tuple(given))
        if self.shard and self.max_kl is not None:
            raise ConfigError("max_kl is measured on whole weights: leave out shard, or max_kl")
        if self.stream and self.too_long == "drop":
            raise ConfigError("stream knows no row before it is drawn, and drops none: too_long is truncate, or error")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out is {self.held_out}: it must be a share between 0 and 1")
        for name, most in (("seed", 2**32 - 1), ("threads", MOST_THREADS), ("lora", MOST_RANK)):
            if (getattr(self, name) or 0) > most:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at most {most}")
        if self.pack is not None and self.batch * self.pack > MOST_TOGETHER:
            raise ConfigError(f"{self.batch:,} rows of {self.pack:,} tokens are too many at once")
        lanes = self.batch * (self.group or 1)
        if lanes * (self.max_tokens or 1) > MOST_TOGETHER:
            raise ConfigError(f"{lanes:,} completions of {self.max_tokens or 1:,} tokens are too many at once")

    @property
    def features_every(self) -> int:
        """Never: units are counted in networks of control."""
        return 0

    @property
    def measures_drift(self) -> bool:
        """Whether updates are measured, and held to a bound."""
        return self.max_kl is not None or self.stop_drift is not None


@dataclass(frozen=True)
class LanguagePlan:
    """A whole run, resolved: what config.json holds."""

    algo: str
    model: str
    data: str
    run: LanguageRun
    algorithm: Any
    weights: str = ""  # SHA-256 over the model's weights
    examples: str = ""  # digest of the data set as tokens; of a streamed one as rows
    judge: str = ""  # digest of the reward model
    conversation: bool = False  # whether prompts are messages, which the chat template writes
    yours: tuple[str, ...] = ()  # what came from Python: some of PYTHON

    @property
    def samples(self) -> bool:
        """Whether it learns from completions of its own."""
        return language_algorithm(self.algo).learns_from == "completions"

    @property
    def title(self) -> str:
        return f"{Path(self.model).name} · {Path(self.data).name}"

    @property
    def axes(self) -> tuple[str, str]:
        """What a step is, and what a return is, for people."""
        return "updates", RETURNS[language_algorithm(self.algo).learns_from]

    @property
    def drift_axis(self) -> str:
        return "KL(policy ‖ reference) of a sequence, nats"

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must have in common with the run that loads it."""
        return {"algo": self.algo, "weights": self.weights, "examples": self.examples}

    def complete(self, step: int) -> bool:
        return step >= self.run.steps

    def taken(self, batch: Batch) -> int:
        """The steps that a collection stands for: one, an update."""
        return 1

    def to_json(self) -> dict[str, Any]:
        return {"kind": "language", **dataclasses.asdict(self)}


def planned(algo: str, model: str, data: str, settings: dict[str, Any], yours: tuple[str, ...] = ()) -> LanguagePlan:
    """Sort flat settings into the dataclasses that own them; UnknownName for one that nobody owns."""
    owners = known(algo)
    for name in settings:
        must_be_setting(name, owners)
    run, algorithm = (
        built(owner, {k: v for k, v in settings.items() if owners[k] is owner})
        for owner in (LanguageRun, language_algorithm(algo).Config)
    )
    return LanguagePlan(algo, model, data, run, algorithm, yours=yours)


def must_be_setting(name: str, settings: Collection[str]) -> None:
    """UnknownName, with what is meant, for a name that is none of these settings."""
    if name in settings:
        return
    if name in ELSEWHERE:
        raise UnknownName(f"unknown setting {name!r}: it is called {ELSEWHERE[name]} here")
    raise unknown("setting", name, settings)


def known(algo: str) -> dict[str, type]:
    """Every setting of a run of this algorithm, and the dataclass that owns it."""
    owners = (LanguageRun, language_algorithm(algo).Config)
    return {field.name: owner for owner in owners for field in dataclasses.fields(owner)}


def from_json(tree: dict[str, Any]) -> LanguagePlan:
    """The plan that `to_json` described; ConfigError for anything else."""
    names = {field.name for field in dataclasses.fields(LanguagePlan)} | {"kind"}
    if strange := tree.keys() ^ names:
        raise ConfigError(f"config.json: {min(strange)!r} is {'missing' if min(strange) in names else 'unknown'}")
    for name, kind in READ.items():
        if type(tree[name]) is not kind:
            raise ConfigError(f"config.json: {name} is {tree[name]!r}, not {kind.__name__}")
    if tree["algo"] not in LANGUAGE:
        raise unknown("algorithm", tree["algo"], LANGUAGE)
    yours = tree["yours"]
    if not isinstance(yours, list | tuple) or any(part not in PYTHON for part in yours):
        raise ConfigError(f"config.json: yours is {yours!r}, not some of {', '.join(PYTHON)}")
    run = built(LanguageRun, tree["run"])
    algorithm = built(language_algorithm(tree["algo"]).Config, tree["algorithm"])
    rest = {name: tree[name] for name in READ}
    return LanguagePlan(**rest, run=run, algorithm=algorithm, yours=tuple(yours))
