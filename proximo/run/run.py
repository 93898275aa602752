"""A run: its folder, its parts, and how far it is; and how that becomes a checkpoint and comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from proximo import ranks
from proximo.algorithms import Algorithm
from proximo.errors import CheckpointError
from proximo.policy import Learner
from proximo.run import checkpoint, folder
from proximo.run.agent import Acting, Agent
from proximo.run.config import Resolved
from proximo.run.plan import Bookkeeper, Judge, Plan, Rating, Source, Watching, rounded, with_deviation
from proximo.sources.envs import EnvSource
from proximo.sources.halves import Halves
from proximo.sources.tensors import TensorSource
from proximo.state import live_tensors, restore

P = TypeVar("P", bound=Plan)
A = TypeVar("A", bound=Acting)
S = TypeVar("S", bound=Source)


@dataclass(repr=False)
class Run(Generic[P, A, S]):
    """A run, while it trains and after."""

    folder: Path
    config: P
    agent: A
    algorithm: Algorithm
    source: S
    judge: Judge | None  # evaluates the policy as it is; None where nothing is at hand to try it on
    ledger: Bookkeeper | None = None  # of drift, where the run asks for one
    watch: Watching | None = None  # tells what is amiss, where somebody watches
    step: int = 0
    update: int = 0
    seconds: float = 0.0
    score: Rating | None = None  # the last evaluation
    evaluated: int = 0  # its step
    metrics: dict[str, Any] = field(default_factory=dict)  # of the last update
    saved: int | None = None  # the step of the last checkpoint
    interrupted: int | None = None  # the signal that ended training early

    def __repr__(self) -> str:
        score = "no score" if self.score is None else f"score {with_deviation(self.score)}"
        return f"<Run of {self.config.algo} on {self.config.title}: {self.step:,} steps, {score}, in {self.folder}>"

    @property
    def policy(self) -> Learner:
        return self.agent.policy

    @property
    def finished(self) -> bool:
        """No whole rollout fits into the steps that are left, or the policy strayed."""
        return self.config.complete(self.step) or self.strayed is not None

    @property
    def unevaluated(self) -> bool:
        """An evaluation is due: at the end, and after every `eval_every` steps; or it was cut short."""
        due = self.finished or crossed(self.evaluated, self.step, self.config.run.eval_every)
        return due and self.judge is not None and self.evaluated < self.step

    @property
    def strayed(self) -> str | None:
        """What happened, where the policy drifted further than `stop_drift`; else None."""
        if self.ledger is None or not self.ledger.strayed:
            return None
        drift, limit = self.ledger.drift.item(), self.config.run.stop_drift
        advice = f"`proximo resume {self.folder} --stop-drift X` goes on until it exceeds X"
        return f"stopped at step {self.step:,}, saved: drift {drift:.3g} exceeds stop_drift {limit:g}; {advice}"

    def summary(self) -> list[str]:
        """What the command says at the end."""
        s = self.score
        found = "–" if s is None else f"{with_deviation(s)} over {len(s.returns)} {s.counted}"
        lines = [f"score  {found}"]
        if self.interrupted and not self.finished:
            lines = [f"stopped at step {self.step:,}, saved; `proximo resume {self.folder}` goes on"]
        elif self.strayed is not None:
            lines = [self.strayed, *lines]
        if self.ledger is not None:
            rows = folder.read_rows(self.folder / folder.DRIFT)
            cut = sum(row["alpha"] < 1 for row in rows)
            bounded = "" if self.config.run.max_kl is None else f"; {cut:,} of {len(rows):,} updates were cut or undone"
            lines += [f"drift  {self.ledger.drift.item():.3g} from the reference{bounded}"]
        if self.seconds > 0:
            each = f"{rounded(self.step / self.seconds)} {self.config.axes[0].split()[-1]}/s"
            lines += [f"speed  {each} ({self.step:,} in {self.seconds:,.0f} s, evaluations aside)"]
        if (self.folder / folder.CURVE).exists():
            lines += [f"curve  {self.folder / folder.CURVE}"]
        return [*lines, f"folder {self.folder}"]

    @property
    def code(self) -> int:
        """The exit code: ending where it strayed is what it was asked to do."""
        return 128 + self.interrupted if self.interrupted else 0


EnvRun = Run[Resolved, Agent, EnvSource | Halves | TensorSource]


def crossed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, now]; never for 0."""
    return every > 0 and now // every > before // every


def state_of(run: Run) -> dict[str, Tensor]:
    """Every tensor of the run but the policy's."""
    ledger = {} if run.ledger is None else {"ledger": run.ledger}
    return live_tensors(algorithm=run.algorithm, source=run.source, **ledger)


def save(run: Run) -> None:
    """Write a checkpoint of this moment; of several processes the first one does."""
    run.saved = run.step
    model, state = (
        {name: ranks.whole(x) for name, x in own.items()} for own in (run.policy.state_dict(), state_of(run))
    )
    if not ranks.first():
        return
    info = {
        "step": run.step,
        "update": run.update,
        "seconds": run.seconds,
        **run.config.identity,
    }
    checkpoint.save(run.folder / "checkpoints", run.step, model, state, info)


def save_if_new(run: Run) -> None:
    """Save, off the schedule, what no checkpoint holds yet."""
    if run.step != run.saved:
        save(run)


def load(run: Run, saved: checkpoint.Checkpoint) -> None:
    """Put a checkpoint's tensors and counters into a run that was built for it."""
    must_match(run.config, saved)
    step, update = saved.number("step", int), saved.number("update", int)
    seconds = saved.number("seconds", int, float)
    load_policy(run.policy, saved)
    restore(state_of(run), saved.state, f"{saved.path}: {checkpoint.STATE}")
    run.step, run.update, run.seconds, run.saved = step, update, seconds, step
    run.evaluated = folder.last_evaluation(run.folder, step)


def load_policy(policy: Learner, saved: checkpoint.Checkpoint) -> None:
    """Put a checkpoint's model into a policy of the same shape."""
    restore(policy.state_dict(keep_vars=True), saved.model, f"{saved.path}: {checkpoint.MODEL}")


def must_match(config: Plan, saved: checkpoint.Checkpoint) -> None:
    """CheckpointError for a checkpoint of another environment or algorithm."""
    for name, wanted in config.identity.items():
        if (got := saved.info.get(name)) != wanted:
            raise CheckpointError(f"{saved.path} is a checkpoint of another {name}: {str(got)[:200]}, not {wanted}")
