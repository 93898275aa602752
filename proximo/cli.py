"""The `proximo` command: train, resume, eval, … Each verb is a function, its arguments the flags."""

import contextlib
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from json import dumps
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium as gym
import tyro
from rich.console import Console

from proximo import cli_language, ranks
from proximo.algorithms import algorithm_named
from proximo.cli_train import Defaults, Request, profile_verb, train_verb
from proximo.errors import ConfigError, ProximoError, memory_told
from proximo.run import advice, catalogue, export, folder, loading, profile, seeds, session
from proximo.run.config import Resolved
from proximo.run.plan import with_deviation
from proximo.run.play import record_video
from proximo.run.plot import plot_drift, plot_runs
from proximo.run.run import Run
from proximo.sources.options import merged

ABOUT = (
    "Proximal policy optimization and its family (of language models: proximo language --help). Add --debug to any "
    "command for the full traceback of an error."
)
Dir = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]


def start(first: Request, parse: Callable[[Defaults], Request]) -> Run | seeds.Series | None:
    """Train or profile what was asked: find the preset or file, and parse the flags again over its settings."""
    if first.config is not None:
        base = folder.config_to_repeat(first.config, first.env, first.preset)
        name, preset, notes = first.env or base.env, base.preset, [f"repeating {first.config}"]
    elif first.env is None:
        verb = "train" if first.form is None else "profile"
        raise ConfigError(f"which environment? for example: proximo {verb} CartPole-v1 (`proximo list` shows them)")
    else:
        name = first.env
        base, notes = session.preset_config(name, first.algo, first.preset)
        preset = base.preset
    asked = parse(Defaults(base.algorithm, base.run, base.network))
    notes += asked.network.idle([name for name, x in vars(asked.network).items() if x != getattr(base.network, name)])
    run = replace(asked.run, env_options=merged(base.run.env_options, asked.run.env_options))
    config = Resolved(name, base.algo, preset, run, asked.algorithm, asked.network)
    if ranks.launched() > 1 and (asked.form is not None or asked.seeds is not None):
        raise ConfigError("--seeds and profile start processes of their own: leave out torchrun")
    if asked.form is not None:
        return advice.show(profile.profile(name, config, notes, asked.quiet), asked.form)
    if asked.seeds is not None:
        return seeds.begin(name, config, asked.seeds, asked.jobs, asked.out, asked.quiet, notes)
    if asked.jobs is not None:
        raise ConfigError("jobs is for several seeds: give --seeds too, such as --seeds 0-9")
    return session.begin(name, config, asked.out, asked.quiet, notes)


def resume(
    dir: Dir,
    steps: int | None = None,
    env: str | None = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    quiet: bool = False,
    jobs: int | None = None,
    stop_drift: float | None = None,
) -> Run | seeds.Series:
    """Continue a run from its newest good checkpoint.

    One that was killed ends with the same weights, bit for bit, as if it had not been. One that was asked to stop saved
    off its schedule: it is as good, but not the same; nor is one that is made longer.

    Args:
        dir: the run's folder, or that of several seeds.
        steps: go on to this many steps in all.
        env: the environment again, where the folder alone must not name it (module:Id).
        device: go on elsewhere; the numbers then differ a little.
        quiet: show nothing but the result.
        jobs: how many of several seeds at a time.
        stop_drift: go on until the drift exceeds this.
    """
    if cli_language.is_ours(dir):
        for name, given in (("env", env), ("jobs", jobs)):
            if given is not None:
                raise ConfigError(f"{dir} is a run of a language model: leave out --{name}")
        return cli_language.resume(dir, steps, stop_drift, device, quiet)
    if folder.seed_folders(dir):
        return seeds.resume(dir, env, steps, device, quiet, jobs, stop_drift)
    if jobs is not None:
        raise ConfigError(f"jobs is for several seeds: {dir} does not hold any")
    return session.resume(dir, env, steps, device, quiet, stop_drift)


def eval_(
    dir: Dir,
    episodes: int = 20,
    json: bool = False,
    env: str | None = None,
    seed: int | None = None,
    max_episode_steps: int | None = None,
) -> None:
    """Play whole episodes with the newest good checkpoint and report their returns.

    Args:
        dir: the run's folder, or one checkpoint's.
        episodes: how many.
        json: print one JSON object.
        env: the environment again, where the folder alone must not name it (module:Id).
        seed: of the episodes; the run's own by default.
        max_episode_steps: where episodes end at the latest; as in the run by default.
    """
    score = loading.evaluate_run(dir, episodes, env, warn, seed, max_episode_steps)
    print(dumps(score.row()) if json else f"return {with_deviation(score)} over {episodes} episodes")


def play(dir: Dir, video: Path, episodes: int = 1, env: str | None = None) -> None:
    """Record episodes of the newest good checkpoint as a video.

    Args:
        dir: the run's folder, or one checkpoint's.
        video: the .mp4 (or .gif) to write.
        episodes: how many, one after the other.
        env: the environment again, where the folder alone must not name it (module:Id).
    """
    frames, returns = record_video(*loading.opened(dir, env, warn), video, episodes)
    print(f"{video}: {frames} frames, return {', '.join(f'{r:.1f}' for r in returns)}")


def export_(dir: Dir, onnx: Path | None = None, torch: Path | None = None) -> None:
    """Write the most likely actions of the newest good checkpoint as files for other programs; they are checked first.

    Args:
        dir: the run's folder, or one checkpoint's.
        onnx: the ONNX file to write.
        torch: the file of torch.export to write (.pt2); who loads such a file must trust it.
    """
    print(*export.export_run(dir, onnx, torch, warn).summary(), sep="\n")


def plot(
    dirs: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="DIR [DIR …]")],
    out: Path,
    drift: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Draw learning curves; runs that differ only in their seed share a line and a band.

    Args:
        dirs: run folders, or folders of several seeds.
        out: the .png to write.
        drift: draw instead how far the policy moved, by the update and in all.
    """
    if drift:
        for run in plot_drift(dirs, out):
            warn(f"{run} is not drawn: no drift was measured in it")
    else:
        plot_runs(dirs, out)
    print(out)


def list_() -> None:
    """Show the algorithms, presets, backends and environments that are at hand."""
    catalogue.show(Console(soft_wrap=True, highlight=False))


def warn(text: str) -> None:
    print(f"proximo: {text}", file=sys.stderr)


def finish(run: Run | seeds.Series) -> int:
    """Say where everything is; the exit code."""
    if not ranks.first():
        return run.code
    print(*run.summary(), sep="\n")
    for line in run.complaints() if isinstance(run, seeds.Series) else []:
        warn(line)
    return run.code


def said(argv: list[str], flag: str) -> str | None:
    """What a command line gives for a flag, which decides how the rest of it is parsed."""
    words = [word for given in argv for word in (given.split("=", 1) if given.startswith(f"{flag}=") else [given])]
    return words[words.index(flag) + 1] if flag in words[:-1] else None


def helpful(argv: list[str], algo: str) -> Defaults:
    """The bare defaults; the preset's where help is asked for on an environment, which is then what it shows."""
    bare = Defaults(algorithm_named(algo).Config())
    if argv[:1] not in (["train"], ["profile"]) or not {"-h", "--help"} & set(argv) or argv[1].startswith("-"):
        return bare
    with contextlib.suppress(ProximoError):  # which the run would tell
        base = session.preset_config(argv[1], algo, said(argv, "--preset") or "auto")[0]
        return Defaults(base.algorithm, base.run, base.network)
    return bare


def execute(argv: list[str]) -> int:
    """Parse and do; the exit code."""
    if argv == ["--version"]:
        print(f"proximo {version('proximo')}")
        return 0
    if argv[:1] == ["language"]:
        return cli_language.execute(argv[1:])
    algo = session.algorithm_asked(said(argv, "--algo"), said(argv, "--config"))
    others = dict(resume=resume, eval=eval_, play=play, export=export_, plot=plot, list=list_)

    def parse(defaults: Defaults) -> Any:
        verbs = {"train": train_verb(defaults), **others, "profile": profile_verb(defaults)}
        if argv and argv[0] in verbs:  # alone, so that its help is what a mistake points to
            which = f" --algo {algo}" if algo != "ppo" and argv[0] in ("train", "profile") else ""
            return tyro.cli(verbs[argv[0]], args=argv[1:], prog=f"proximo {argv[0]}{which}")
        return tyro.extras.subcommand_cli_from_dict(verbs, args=argv, prog="proximo", description=ABOUT)

    done = parse(helpful(argv, algo))
    if isinstance(done, Request):
        if done.seeds is not None and any(word.partition("=")[0] == "--seed" for word in argv):
            raise ConfigError("--seeds says which seeds to train: leave out --seed")
        done = start(done, parse)
    return finish(done) if isinstance(done, Run | seeds.Series) else 0


def main() -> None:
    """Entry point: every mistake is one line and exit code 2; --debug shows the traceback."""
    argv = sys.argv[1:]
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    if not debug:
        gym.logger.min_level = gym.logger.ERROR + 1  # its warnings and workers' tracebacks: told here in one line
        threading.excepthook = lambda error: None  # a log's thread: the main thread meets the same error, and tells it
    warnings.filterwarnings("default" if debug else "ignore")
    try:
        with memory_told():
            sys.exit(execute(argv))
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (ProximoError, OSError) as error:  # the latter: a folder that may not be read, a disk that is gone
        if debug:
            traceback.print_exc()
        if ranks.tells():
            print(f"proximo: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        kept = "; the last checkpoint stands" if argv[:1] in (["train"], ["resume"]) else ""
        if ranks.tells():
            print(f"proximo: stopped{kept}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
