"""Several seeds at once: a process for each, so many at a time, one panel, one curve; and going on with them.

The parent's folder holds nothing but its runs. Each gets its config.json before the first begins, so that a seed that
never started is an ordinary run that was stopped before its first step: starting one and going on with one are the same
`proximo resume`, and nothing that was asked lies anywhere but in the files that every run has.
"""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from proximo.errors import ConfigError, RunFolderError
from proximo.run import folder, session
from proximo.run.child import Child
from proximo.run.config import Resolved, changed
from proximo.run.loading import agent_of, reference_of
from proximo.run.plot import has_curve, plot_runs
from proximo.run.seeds_panel import SeedsReporter, number, seeds_reporter
from proximo.run.signals import Interrupts

TICK = 0.25  # seconds between two looks at the runs
MOST = 1000  # seeds of one command


@dataclass
class Series:
    """Several seeds of one setting, after training."""

    folder: Path
    seeds: list[Child]
    again: list[str]  # flags that starting a seed, and going on, needs
    interrupted: int | None = None  # the signal that ended training early

    def done(self) -> list[Child]:
        return [seed for seed in self.seeds if seed.state == "done"]

    def complaints(self) -> list[str]:
        """A line for each thing that went wrong, with the seeds it happened to."""
        found: dict[str, list[str]] = defaultdict(list)
        for seed in self.seeds:
            if seed.state == "failed":
                found[seed.message.replace(str(seed.folder), "its folder")].append(str(seed.seed))
        return [f"seed{'s' * (len(who) > 1)} {', '.join(who)}: {message}" for message, who in found.items()]

    def summary(self) -> list[str]:
        """What the command says at the end."""
        done, lines = self.done(), list[str]()
        if len(done) < len(self.seeds):
            how = "stopped, saved" if self.interrupted else "not complete"
            resume = " ".join(["proximo resume", str(self.folder), *self.again])
            lines += [f"{how}: {len(done)} of {len(self.seeds)} seeds are done; `{resume}` goes on"]
        if strayed := [f"seed-{seed.seed}" for seed in done if seed.strayed]:
            advice = f"`proximo resume {self.folder} --stop-drift X` goes on until they exceed X"
            lines += [f"stopped, saved: the drift of {', '.join(strayed)} exceeds stop_drift; {advice}"]
        scores = [seed.score for seed in done if seed.score is not None]
        if scores:
            lines += [f"score  {np.mean(scores):.1f} ± {np.std(scores):.1f} over {len(scores)} seeds"]
            lines += [f"each   {', '.join(f'seed-{seed.seed} {number(seed.score)}' for seed in done)}"]
        if (self.folder / folder.CURVE).exists():
            lines += [f"curve  {self.folder / folder.CURVE}"]
        return [*lines, f"folder {self.folder}"]

    @property
    def code(self) -> int:
        """The exit code."""
        return 128 + self.interrupted if self.interrupted else 2 if self.complaints() else 0


def numbers(text: str) -> list[int]:
    """The seeds that a text such as 0-9 or 0,3,7 names; ConfigError for anything else."""
    found: list[int] = []
    for part in text.split(","):
        if not (ends := re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10}))?", part)):
            raise ConfigError(f"seeds is {text!r}: it must be numbers and ranges, such as 0-9 or 0,3,7")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if last < first:
            raise ConfigError(f"seeds is {text!r}: the range {part} runs backwards, try {last}-{first}")
        if last - first + len(found) >= MOST:
            raise ConfigError(f"seeds is {text!r}: at most {MOST:,} are trained at once")
        found += range(first, last + 1)
    if twice := [seed for i, seed in enumerate(found) if seed in found[:i]]:
        raise ConfigError(f"seeds is {text!r}: {twice[0]} is there twice")
    return found


def begin(
    env: str, config: Resolved, seeds: str, jobs: int | None, out: Path | None, quiet: bool, notes: list[str]
) -> Series:
    """Train a configuration with each of `seeds`, at most `jobs` at a time, each as it would be trained alone."""
    asked = numbers(seeds)
    changed(config.run, seed=max(asked))
    at_least_one(jobs)
    config, _, choices = session.fitted(env, config)
    policy = agent_of(config, "meta", fresh=False).policy  # a network that cannot be built is told once, and here
    if config.run.drift_reference is not None:
        reference_of(config, policy)  # so is a reference that does not fit
    parent = folder.new_folder(out, config, asked)
    again = ["--env", env] if ":" in env else []  # a folder alone must not name a module
    return drive(Series(parent, standing(parent), again), jobs, quiet, notes + choices)


def resume(
    parent: Path,
    env: str | None,
    steps: int | None,
    device: str | None,
    quiet: bool,
    jobs: int | None,
    stop_drift: float | None = None,
) -> Series:
    """Go on with every seed that is not complete, those that never started among them; the others are left alone."""
    at_least_one(jobs)
    flags = {"--steps": steps, "--env": env, "--device": device, "--stop-drift": stop_drift}
    again = [str(word) for name, value in flags.items() if value is not None for word in (name, value)]
    notes: list[str] = []
    series = Series(parent, standing(parent, steps, notes.append, stop_drift), again)
    done, count = len(series.done()), len(series.seeds)
    if done == count:
        strayed = ", and with --stop-drift X those that strayed" if any(seed.strayed for seed in series.seeds) else ""
        advice = f"`proximo resume {parent} --steps N` goes on to N steps in all{strayed}"
        raise RunFolderError(f"{parent} is complete: all {count} seeds are done; {advice}")
    return drive(series, jobs, quiet, [*notes, f"resuming {parent}: {done} of {count} seeds are done"])


def standing(
    parent: Path,
    steps: int | None = None,
    say: Callable[[str], None] = lambda text: None,
    stop_drift: float | None = None,
) -> list[Child]:
    """Where each seed of a folder stands, if it is to take so many steps in all, and to drift so far at most."""
    seeds: list[Child] = []
    for path in folder.seed_folders(parent):
        config = folder.read_config(path)
        config = replace(config, run=changed(config.run, steps=steps, stop_drift=stop_drift))
        number = int(path.name.removeprefix("seed-"))
        seeds.append(Child(seed=number, total=config.run.steps, folder=path, config=config))
        seeds[-1].settle(say)
    return seeds


def drive(series: Series, jobs: int | None, quiet: bool, notes: list[str]) -> Series:
    """Train what is not done, `jobs` at a time; draw the curve."""
    config, jobs = series.seeds[0].config, min(jobs or cores(), len(series.seeds))
    title = f"{config.algo} · {config.env} · {len(series.seeds)} seeds, {jobs} at a time · {series.folder}"
    with closing(seeds_reporter(quiet, title, series.seeds)) as reporter:
        for note in notes:
            reporter.say(note)
        series.interrupted = train(series.seeds, jobs, series.again, reporter)
    runs = [seed.folder for seed in series.done() or series.seeds]  # a run cut short would cut the band short
    if any(map(has_curve, runs)):
        plot_runs([run for run in runs if has_curve(run)], series.folder / folder.CURVE)
    return series


def train(seeds: list[Child], jobs: int, words: list[str], reporter: SeedsReporter) -> int | None:
    """Keep `jobs` processes at work until all seeds have ended, or a signal asks to stop; that signal."""
    with Interrupts() as interrupts, none_left_behind(seeds):
        while True:
            busy = [seed for seed in seeds if seed.process is not None]
            if interrupts.caught is None:
                for seed in [seed for seed in seeds if seed.state == "waiting"][: jobs - len(busy)]:
                    seed.start(words)
                    busy.append(seed)
            else:
                for seed in busy:
                    if seed.state == "training":
                        seed.stop()
            reporter.show(seeds)
            if not busy:
                return interrupts.caught
            time.sleep(TICK)
            for seed in busy:
                if seed.look():
                    reporter.ended(seed)


@contextmanager
def none_left_behind(seeds: Sequence[Child]) -> Iterator[None]:
    """Whatever happens here, no process outlives the block."""
    try:
        yield
    finally:
        for seed in seeds:
            seed.kill()


def at_least_one(jobs: int | None) -> None:
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs is {jobs}: at least 1 is needed")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
