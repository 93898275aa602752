"""A run that was put together, from where it is to its end; whatever it trains."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TypeVar

from proximo import ranks
from proximo.errors import RunFolderError
from proximo.run import checkpoint, folder
from proximo.run.log import log_for
from proximo.run.loop import learn
from proximo.run.panel import reporter_for
from proximo.run.plot import has_curve, plot_runs
from proximo.run.run import Run, load, save

R = TypeVar("R", bound=Run)


def bring_back(run: Run, saved: checkpoint.Checkpoint | None) -> None:
    """Bring a run to where it was saved; RunFolderError where there is nothing to go on with."""
    if saved is not None:
        load(run, saved)
    else:
        save(run)  # it was stopped before its first checkpoint, and begins again
    path, steps = run.folder, run.config.run.steps
    if run.unevaluated:
        return
    if run.config.complete(run.step):
        advice = f"`proximo resume {path} --steps N` goes on to N steps in all"
        raise RunFolderError(f"{path} is complete: {run.step:,} of {steps:,} steps are done; {advice}")
    if run.strayed is not None:
        raise RunFolderError(f"{path} {run.strayed}")


def drive(run: R, quiet: bool, notes: list[str]) -> R:
    """Train to the end and draw the curve; everything is closed whatever happens."""
    title = f"{run.config.algo} · {run.config.title} · {run.folder}"
    with ExitStack() as stack:
        stack.callback(run.source.close)
        log = log_for(run.folder, run.step)
        stack.callback(log.close)
        reporter = reporter_for(quiet or not ranks.first(), title, run.config.run.steps, run.step, run.config.axes[0])
        stack.callback(lambda: reporter.close(run.finished))
        for note in notes:
            reporter.say(note)
        learn(run, log, reporter)
    if ranks.first() and has_curve(run.folder):
        plot_runs([run.folder], run.folder / folder.CURVE)
    return run
