"""The training loop. There is one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from proximo.algorithms import Algorithm
from proximo.batch import Batch
from proximo.errors import CheckpointError, ProximoError
from proximo.models.actor_critic import ActorCritic
from proximo.run import checkpoint
from proximo.run.agent import Agent
from proximo.run.config import Resolved
from proximo.run.evaluate import Score, evaluate
from proximo.run.log import RunLog
from proximo.run.panel import Reporter
from proximo.run.seeding import LANES, UPDATES, borrowed_generators, derived, seed_all
from proximo.run.signals import Interrupts
from proximo.sources.backends import MakeEnv
from proximo.sources.envs import EnvSource
from proximo.state import live_tensors, restore


@dataclass
class Run:
    """A run, while it trains and after: its folder, its parts, and how far it is."""

    folder: Path
    config: Resolved
    agent: Agent
    algorithm: Algorithm
    source: EnvSource
    make_one: MakeEnv | None  # for evaluation; None where only a vector environment is at hand
    step: int = 0
    update: int = 0
    seconds: float = 0.0
    score: Score | None = None  # the last evaluation
    metrics: dict[str, Any] = field(default_factory=dict)  # of the last update
    interrupted: int | None = None  # the signal that ended training early

    @property
    def policy(self) -> ActorCritic:
        return self.agent.policy

    @property
    def finished(self) -> bool:
        """No whole rollout fits into the steps that are left."""
        return self.step + self.config.rollout > self.config.run.steps


def learn(run: Run, log: RunLog, reporter: Reporter) -> None:
    """Collect, learn, log; evaluate and save on schedule; stop when the steps are used or a signal asks to.

    At a checkpoint the environments start anew from (seed, step), in a run that goes on as in one that resumes.
    """
    c = run.config.run
    with Interrupts() as interrupts, borrowed_generators():
        start_lanes(run)
        while not run.finished and interrupts.caught is None:
            begin, before = time.perf_counter(), run.step
            seed_all(derived(c.seed, UPDATES, run.update))
            batch = experience(run)
            report = run.algorithm.step(batch, run.step / c.steps)
            run.policy.observe(batch)
            run.step, run.update = run.step + int(batch.mask.sum()), run.update + 1
            record(run, log, reporter, report, time.perf_counter() - begin, run.step - before)
            if run.finished or crossed(before, run.step, c.eval_every):
                measure(run, log, reporter)
            if run.finished or crossed(before, run.step, c.checkpoint_every):
                save(run)
                if not run.finished:
                    start_lanes(run)
        run.interrupted = interrupts.caught
        keep(run)


def crossed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, now]; never for 0."""
    return every > 0 and now // every > before // every


def start_lanes(run: Run) -> None:
    seed = derived(run.config.run.seed, LANES, run.step)
    seed_all(seed)
    run.source.restart(seed)


def experience(run: Run) -> Batch:
    """One collection; if the environment fails, what was learned until here is kept."""
    try:
        return run.source.collect(run.policy)
    except ProximoError:
        keep(run)
        raise


def record(run: Run, log: RunLog, reporter: Reporter, report: dict[str, Any], seconds: float, steps: int) -> None:
    """Write one update's metrics."""
    run.seconds += seconds
    names = ("policy_loss", "value_loss", "entropy", "kl", "clip_fraction", "explained_variance", "grad_norm", "lr")
    learned = {name: report[name] for name in (*names, *sorted(report.keys() - set(names))) if name in report}
    place = {"step": run.step, "update": run.update, "seconds": run.seconds, "steps_per_second": steps / seconds}
    run.metrics = log.metrics({**place, **run.source.episodes.metrics(), **learned})
    reporter.update(run.metrics)


def measure(run: Run, log: RunLog, reporter: Reporter) -> None:
    """Evaluate, where single environments can be made."""
    if run.make_one is None:
        return
    c = run.config.run
    try:
        run.score = evaluate(run.agent, run.make_one, c.eval_episodes, c.seed)
    except ProximoError:
        keep(run)
        raise
    log.evaluation({"step": run.step, **run.score.row()})
    reporter.evaluation(run.score)


def state_of(run: Run) -> dict[str, torch.Tensor]:
    """Every tensor of the run but the policy's."""
    return live_tensors(algorithm=run.algorithm, source=run.source)


def save(run: Run) -> Path:
    """Write a checkpoint of this moment."""
    info = {
        "step": run.step,
        "update": run.update,
        "seconds": run.seconds,
        "env": run.config.env,
        "algo": run.config.algo,
        "spaces": run.config.spaces,
    }
    return checkpoint.save(run.folder / "checkpoints", run.step, run.policy.state_dict(), state_of(run), info)


def keep(run: Run) -> None:
    """Save, off the schedule, what no checkpoint holds yet."""
    if not (run.folder / "checkpoints" / f"{run.step:012d}").exists():
        save(run)


def load(run: Run, saved: checkpoint.Checkpoint) -> None:
    """Put a checkpoint's tensors and counters into a run that was built for it."""
    fit(run.config, saved)
    step, update = saved.number("step", int), saved.number("update", int)
    seconds = saved.number("seconds", int, float)
    load_policy(run.policy, saved)
    restore(state_of(run), saved.state, f"{saved.path}: {checkpoint.STATE}")
    run.step, run.update, run.seconds = step, update, seconds


def load_policy(policy: ActorCritic, saved: checkpoint.Checkpoint) -> None:
    """Put a checkpoint's model into a policy of the same shape."""
    restore(policy.state_dict(keep_vars=True), saved.model, f"{saved.path}: {checkpoint.MODEL}")


def fit(config: Resolved, saved: checkpoint.Checkpoint) -> None:
    """CheckpointError for a checkpoint of another environment or algorithm."""
    for name, wanted in (("env", config.env), ("algo", config.algo), ("spaces", config.spaces)):
        if (got := saved.info.get(name)) != wanted:
            raise CheckpointError(f"{saved.path} is a checkpoint of another {name}: {str(got)[:200]}, not {wanted}")
