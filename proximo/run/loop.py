"""The training loop. There is one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from proximo import ranks
from proximo.errors import ProximoError, memory_told
from proximo.plasticity import in_use
from proximo.run.log import Log
from proximo.run.panel import Reporter
from proximo.run.run import Run, crossed, save, save_if_new
from proximo.run.seeding import LANES, UPDATES, derived, seed_all
from proximo.run.signals import Interrupts
from proximo.state import Snapshot, live_tensors, restore


def learn(run: Run, log: Log, reporter: Reporter) -> None:
    """Collect, learn, log; evaluate and save on schedule; stop when the steps are used or a signal asks to.

    At a checkpoint the environments start anew from (seed, step), in a run that goes on as in one that resumes.
    """
    c = run.config.run
    with Interrupts() as interrupts:
        start_lanes(run)
        guard = Guard(run, log)
        if run.unevaluated:  # what was stopped in an evaluation begins with it
            measure(run, log, reporter, interrupts)
        while not run.finished and interrupts.agreed() is None:
            before = run.step
            cycle(run, guard, log, reporter)
            if run.unevaluated:
                with guard.kept():
                    measure(run, log, reporter, interrupts)
            if run.finished or crossed(before, run.step, c.checkpoint_every):
                ranks.must_agree(() if guard.sharded else guard.live.values())
                log.flush()
                save(run)
                if not run.finished:
                    start_lanes(run)
        run.interrupted = interrupts.caught
        log.flush()
        save_if_new(run)


def cycle(run: Run, guard: Guard, log: Log, reporter: Reporter) -> None:
    """Collect, learn and log once."""
    c = run.config.run
    begin, before = time.perf_counter(), run.step
    seed_all(derived(c.seed, UPDATES, run.update))
    with guard.kept():
        batch = run.source.collect(run.policy)
        report = run.algorithm.step(batch, run.step / c.steps)
        run.policy.observe(batch)
        held = None if run.ledger is None else run.ledger.settle(batch, guard.live, guard.before)
    run.step, run.update = run.step + run.config.taken(batch), run.update + 1
    if held is not None:
        log.drift({"step": run.step, "update": run.update, **held})
    if run.finished or crossed(before, run.step, c.features_every):
        report = report | in_use(run.policy, batch)
    record(run, log, reporter, report, time.perf_counter() - begin, run.step - before)


def start_lanes(run: Run) -> None:
    seed = derived(run.config.run.seed, LANES, run.step)
    seed_all(seed)
    run.source.restart(seed)


class Guard:
    """Brings a run's tensors back to what they were when something fails, and saves what was learned until then.

    It saves nothing of a run that is gone afterwards (`saves` False).
    """

    def __init__(self, run: Run, log: Log, saves: bool = True) -> None:
        self.run, self.log, self.saves = run, log, saves
        ledger = {} if run.ledger is None else {"ledger": run.ledger}
        every = live_tensors(policy=run.policy, algorithm=run.algorithm, source=run.source, **ledger)
        # the ledger's reference never changes
        tensors = {name: tensor for name, tensor in every.items() if not name.startswith("ledger.reference.")}
        self.live = {name: ranks.local(tensor) for name, tensor in tensors.items()}
        self.sharded = any(self.live[name] is not tensor for name, tensor in tensors.items())
        self.snapshot = Snapshot(self.live)
        self.before = self.snapshot.tensors

    @contextmanager
    def kept(self) -> Iterator[None]:
        """A block after whose failure the run's tensors are as they were before it."""
        self.snapshot.take()
        try:
            with memory_told():
                yield
        except (Exception, KeyboardInterrupt) as error:
            restore(self.live, self.before, "undoing a failed update")
            if self.sharded or not self.saves:  # to save shards, all ranks must come
                raise
            self.log.flush()
            save_if_new(self.run)
            if self.run.step == 0 or isinstance(error, KeyboardInterrupt):
                raise
            saved = f"step {self.run.step:,} is saved, `proximo resume {self.run.folder}` goes on from there"
            if not isinstance(error, ProximoError):  # of a network or a Term of one's own: it stays what it is
                error.add_note(saved)
                raise
            raise type(error)(f"{error} ({saved})") from error


def record(run: Run, log: Log, reporter: Reporter, report: dict[str, Any], seconds: float, steps: int) -> None:
    """Write one update's metrics."""
    run.seconds += seconds
    names = ("policy_loss", "value_loss", "entropy", "kl", "clip_fraction", "explained_variance", "grad_norm", "lr")
    learned = {name: report[name] for name in (*names, *sorted(report.keys() - set(names))) if name in report}
    place = {"step": run.step, "update": run.update, "seconds": run.seconds, "steps_per_second": steps / seconds}
    run.metrics = log.metrics({**place, **run.source.episodes.metrics(), **learned})
    reporter.update(run.metrics)
    if run.watch is not None:
        alarmed(log, reporter, run.step, run.watch.updated(run.folder, run.metrics))


def alarmed(log: Log, reporter: Reporter, step: int, alarms: list[str]) -> None:
    """Tell of alarms, and write them down."""
    for text in alarms:
        reporter.say(text)
        log.alarm({"step": step, "alarm": text})


def measure(run: Run, log: Log, reporter: Reporter, interrupts: Interrupts) -> None:
    """Evaluate, where there is something to try the policy on; a signal cuts it short."""
    score = None if run.judge is None else run.judge(lambda: interrupts.caught is not None)
    if score is None:
        return
    run.score, run.evaluated = score, run.step
    row = {"step": run.step, **score.row()}
    log.evaluation(row, score.samples)
    reporter.evaluation(score)
    if run.watch is not None:
        alarmed(log, reporter, run.step, run.watch.evaluated(run.folder, row))
