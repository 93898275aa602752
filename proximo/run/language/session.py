"""The public verbs for language models: train, resume, load."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proximo import compiler, ranks
from proximo.errors import ConfigError, RunFolderError
from proximo.models.language.hub import folder_of
from proximo.models.language.policy import in_pieces
from proximo.models.language.reward import RewardModel
from proximo.models.language.sharding import parts
from proximo.preferences import last_live
from proximo.rewards import Reward
from proximo.run import checkpoint, folder
from proximo.run.drive import bring_back, drive
from proximo.run.files import replace_durably
from proximo.run.language.build import (
    Device,
    Given,
    LanguageTrain,
    build,
    here,
    must_be_same,
    policy_of,
    resolved,
    reward_model,
)
from proximo.run.language.material import words_of
from proximo.run.language.plan import LanguagePlan, LanguageRun, planned
from proximo.run.language.speaker import ModelReward, Speaker
from proximo.run.run import load as load_run
from proximo.run.run import load_policy, save
from proximo.run.seeding import borrowed_generators, seed_all
from proximo.run.settings import built
from proximo.sources.generation import Generator, generator_named
from proximo.sources.texts import TextSource
from proximo.threads import threads

NOTHING = Given()
DONE = "trained-steps.txt"  # in a model's folder: of which step it is
MODEL = "model"  # in a run's folder: the model as transformers reads it


def train(
    model: str | Path,
    data: Any,
    algo: str = "ppo",
    *,
    reward: Reward | None = None,
    gold: Reward | None = None,
    generator: Generator | str | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
    **settings: Any,
) -> LanguageTrain:
    """Train a causal language model, from a folder or hub id to a run's folder.

    `data` is a file, a data set's id, a `datasets.Dataset` or a list of dicts; `reward` a function of prompts and
    completions (see `proximo.rewards`), `gold` one that evaluations measure and nothing learns,
    `generator` who samples, by name or a function (see `sources.generation`); `settings` are the fields of LanguageRun
    and of the algorithm's Config, by name. Raises a ProximoError, in one line, for what cannot work.
    """
    named = isinstance(data, str | Path)
    if isinstance(generator, str):
        settings["generator"], generator = generator, None
    for name, function in (("reward", reward), ("gold", gold), ("generator", generator)):
        if function is not None and not callable(function):
            advice = (
                ""
                if name == "generator"
                else f"; built-in ones by name: {'rewards' if name == 'reward' else name}=(…,)"
            )
            raise ConfigError(f"{name} is a {type(function).__name__}, not a function{advice}")
    mine = Given(reward, gold, generator)
    own = {"data": not named, **{name: x is not None for name, x in mine._asdict().items()}}
    yours = tuple(name for name, given in own.items() if given)
    plan = planned(algo, str(model), str(data) if named else "<Python>", settings, yours)
    return begin(plan, data, mine, out, quiet)


def begin(
    plan: LanguagePlan, data: Any, given: Given = NOTHING, out: str | Path | None = None, quiet: bool = False
) -> LanguageTrain:
    """Build a run from a plan, in a new folder, and train it."""
    plan, notes = resolved(plan), list[str]()
    with computing(plan.run):
        seed_all(plan.run.seed)
        run = build(plan, data, given, notes.append)
        run.folder = folder.shared_folder(out, run.config)
        if ranks.first():
            run.agent.policy.model.config.save_pretrained(run.folder / MODEL)
            run.agent.words.tokenizer.save_pretrained(run.folder / MODEL)
        save(run)
        return finished(drive(run, quiet, notes))


def resume(
    path: str | Path,
    data: Any = None,
    *,
    reward: Reward | None = None,
    gold: Reward | None = None,
    generator: Generator | None = None,
    steps: int | None = None,
    stop_drift: float | None = None,
    device: Device | None = None,
    quiet: bool = False,
) -> LanguageTrain:
    """Continue a run from its newest good checkpoint, exactly as if it had never stopped.

    `data`, `reward`, `gold` and `generator` are those it was started with, where they came from Python; `steps` extends
    it, and `device` is where it goes on, its numbers then differing a little.
    """
    path = Path(path)
    plan = plan_of(path)
    mine = Given(reward, gold, generator)
    must_have(plan, "resume", data=data, **mine._asdict())
    if stop_drift is not None and not (
        plan.run.measures_drift or (plan.samples and "ref_logp" in plan.algorithm.needs)
    ):
        raise ConfigError(f"{path} was begun without a reference: how far it is from that is not known")
    given = (("steps", steps), ("stop_drift", stop_drift), ("device", device and here(device)))
    asked = {name: x for name, x in given if x is not None}
    plan, notes = replace(plan, run=built(LanguageRun, {**asdict(plan.run), **asked})), list[str]()
    with computing(plan.run):
        saved = None if checkpoint.none_yet(path) else checkpoint.latest(path, notes.append)
        seed_all(plan.run.seed)
        run = build(plan, plan.data if data is None else data, mine, notes.append)
        run.folder = path
        if saved is not None and plan.complete(saved.number("step", int)) and not is_written(path, plan):
            load_run(run, saved)  # it was stopped between its last checkpoint and its end
            return finished(drive(run, quiet, notes) if run.unevaluated else run)
        bring_back(run, saved)
        if isinstance(run.policy, RewardModel):
            run.policy.as_it_learns()
        folder.go_on(path, run.config, run.step)
        notes.append(f"resuming {path} at update {run.step:,}")
        return finished(drive(run, quiet, notes))


def finished(run: LanguageTrain) -> LanguageTrain:
    """Write the model as transformers reads it, where the run came to its end."""
    if run.finished and run.config.algo == "reward":
        normalized(run)
    if run.finished and ranks.first():
        model = run.agent.policy.model if not parts(run.agent.policy) else whole_policy(run).model
        if run.config.run.lora is not None:
            model = copy.deepcopy(model).merge_and_unload()
        model.save_pretrained(run.folder / MODEL)
        replace_durably(run.folder / MODEL / DONE, str(run.step).encode())
    return run


def is_written(path: Path, plan: LanguagePlan) -> bool:
    """Whether the model of a complete run is there, as it was at the end."""
    done = path / MODEL / DONE
    return done.exists() and done.read_bytes() == str(plan.run.steps).encode()


def normalized(run: LanguageTrain) -> None:
    """Bring a reward model's rewards of held-out texts to mean 0 and deviation 1 (Ziegler et al. 2019), and save it."""
    policy, source = run.agent.policy, run.source
    assert isinstance(policy, RewardModel)
    assert isinstance(source, TextSource)
    found = list[Tensor]()
    for i in range(0, len(run.agent.held), source.count):
        batch = source.batch(policy, run.agent.held[i : i + source.count])
        value = in_pieces(batch, source.at_once, lambda part: policy.evaluate(part).value)
        found.append(last_live(value, batch.mask).flatten())
    policy.normalize(torch.cat(found))
    save(run)


def whole_policy(run: LanguageTrain) -> Any:
    """The policy of a run's last checkpoint, in one piece."""
    policy = policy_of(run.config, folder_of(run.config.model))
    load_policy(policy, checkpoint.latest(run.folder, lambda text: None))
    return policy


def load(path: str | Path, say: Callable[[str], None] = lambda text: None) -> Speaker:
    """The model of a run's newest good checkpoint, ready to complete texts."""
    path = Path(path)
    plan = plan_of(path)
    if plan.algo == "reward":
        raise ConfigError(f"{path} holds a reward model, which judges texts and writes none")
    base = folder_of(plan.model)
    must_be_same(plan, base)
    with borrowed_generators():
        policy = policy_of(replace(plan, run=replace(plan.run, device="cpu", max_kl=None, stop_drift=None)), base)
    load_policy(policy, checkpoint.latest(path, say))
    generator = generator_named(plan.run.generator, plan.run.precision)
    return Speaker(policy, words_of(base), generator, plan.run.max_tokens if plan.samples else None)


def judge(path: str | Path, device: str = "cpu") -> Reward:
    """The reward model of a run of `proximo language reward`, as a reward of prompts and completions."""
    with borrowed_generators():
        return ModelReward(*reward_model(Path(path), device))


def plan_of(path: Path) -> LanguagePlan:
    """The plan of a run of a language model; RunFolderError for any other."""
    if (path / "config.json").exists() and any(path.glob("*.safetensors")):
        raise RunFolderError(f"{path} is a model, not a run's folder: runs are what `proximo language sft …` writes")
    plan = folder.read_plan(path)
    if not isinstance(plan, LanguagePlan):
        raise RunFolderError(f"{path} is a run in an environment, not one of a language model")
    return plan


def must_have(plan: LanguagePlan, verb: str, **given: Any) -> None:
    """RunFolderError where something of a run came from Python and is not there now."""
    for name, mine in given.items():
        if name in plan.yours and mine is None:
            raise RunFolderError(f"the {name} of this run came from Python: proximo.language.{verb}(…, {name}=…)")


@contextmanager
def computing(run: LanguageRun) -> Iterator[None]:
    """A block in which torch computes as the run asks; the caller's generators are put back afterwards."""
    count = run.threads or ranks.cores()
    with ranks.joined(run.device), threads(count), compiler.compiling(False), borrowed_generators():
        yield
