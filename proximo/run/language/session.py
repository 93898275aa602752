"""The public verbs for language models: train, resume, load."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from proximo import compiler, ranks
from proximo.errors import ConfigError, RunFolderError
from proximo.models.language.hub import folder_of
from proximo.models.language.sharding import parts
from proximo.rewards import Reward
from proximo.run import checkpoint, folder
from proximo.run.drive import bring_back, drive
from proximo.run.language.build import Given, LanguageTrain, build, policy_of, resolved
from proximo.run.language.material import words_of
from proximo.run.language.plan import LanguagePlan, LanguageRun, planned
from proximo.run.language.speaker import Speaker
from proximo.run.machine import threads
from proximo.run.run import load_policy, save
from proximo.run.seeding import borrowed_generators, seed_all
from proximo.run.settings import built
from proximo.sources.generation import generator_named

NOTHING = Given()
MODEL = "model"  # in a run's folder: the model as transformers reads it


def train(
    model: str | Path,
    data: Any,
    algo: str = "ppo",
    *,
    reward: Reward | None = None,
    gold: Reward | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
    **settings: Any,
) -> LanguageTrain:
    """Train a causal language model, from a folder or hub id to a run's folder.

    `data` is a file, a data set's id, a `datasets.Dataset` or a list of dicts; `reward` a function of prompts and
    completions (see `proximo.rewards`), `gold` one that evaluations measure and nothing learns; `settings` are the
    fields of LanguageRun and of the algorithm's Config, by name. Raises a ProximoError, in one line, for what cannot
    work.
    """
    named = isinstance(data, str | Path)
    own = {"data": not named, "reward": reward is not None, "gold": gold is not None}
    yours = tuple(name for name, mine in own.items() if mine)
    plan = planned(algo, str(model), str(data) if named else "<Python>", settings, yours)
    return begin(plan, data, Given(reward, gold), out, quiet)


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
    steps: int | None = None,
    stop_drift: float | None = None,
    quiet: bool = False,
) -> LanguageTrain:
    """Continue a run from its newest good checkpoint, exactly as if it had never stopped.

    `data`, `reward` and `gold` are those it was started with, where they came from Python; `steps` extends it.
    """
    path = Path(path)
    plan = plan_of(path)
    must_have(plan, "resume", data=data, reward=reward, gold=gold)
    asked = {name: x for name, x in (("steps", steps), ("stop_drift", stop_drift)) if x is not None}
    plan, notes = replace(plan, run=built(LanguageRun, {**asdict(plan.run), **asked})), list[str]()
    with computing(plan.run):
        saved = None if checkpoint.none_yet(path) else checkpoint.latest(path, notes.append)
        seed_all(plan.run.seed)
        run = build(plan, plan.data if data is None else data, Given(reward, gold), notes.append)
        run.folder = path
        bring_back(run, saved)
        folder.go_on(path, run.config, run.step)
        notes.append(f"resuming {path} at update {run.step:,}")
        return finished(drive(run, quiet, notes))


def finished(run: LanguageTrain) -> LanguageTrain:
    """Write the model as transformers reads it, where the run came to its end."""
    if run.finished and ranks.first():
        model = run.agent.policy.model if not parts(run.agent.policy) else whole_policy(run).model
        if run.config.run.lora is not None:
            model = copy.deepcopy(model).merge_and_unload()
        model.save_pretrained(run.folder / MODEL)
    return run


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
    with borrowed_generators():
        policy = policy_of(replace(plan, run=replace(plan.run, device="cpu", max_kl=None, stop_drift=None)), base)
    load_policy(policy, checkpoint.latest(path, say))
    return Speaker(policy, words_of(base), generator_named(plan.run.generator, plan.run.precision))


def plan_of(path: Path) -> LanguagePlan:
    """The plan of a run of a language model; RunFolderError for any other."""
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
